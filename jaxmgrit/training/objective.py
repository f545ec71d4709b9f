"""What every trainer does: parameters laid out over the devices, the objective, and its inexact gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmgrit._checks import check_carry, check_finite, check_state
from jaxmgrit._pytree import copies, merge, split, where
from jaxmgrit.solution import CPoints
from jaxmgrit.solvers.result import Result
from jaxmgrit.system.partition import lay_out
from jaxmgrit.training.common import NOTHING, Extra, Layer
from jaxmgrit.training.optimizer_state import Storage
from jaxmgrit.training.penalty import first_layers, penalty_gradient, penalty_value
from jaxmgrit.training.problem import Problem, check_objective, hidden_layers, number_of_layers, takes_common
from jaxmgrit.training.running_cost import total_running_cost
from jaxmgrit.training.schedules.base import Found, Head, Schedule, Setting
from jaxmgrit.training.state import Params
from jaxmgrit.training.warm import SAME, UNKNOWN, Opening, check_warm, fingerprint
from jaxmgrit.verbs.state import propagate_exactly, solve_network

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Layers, State, Warm
    from jaxmgrit.backend.base import Backend
    from jaxmgrit.system.network import Network

PyTree = Any


class Start(NamedTuple):
    """Parameters and warm values before the first iteration, placed on the devices; N; the batch's fingerprint."""

    params: Params
    warm: PyTree
    layers: int
    batch: jax.Array


class Evaluated(NamedTuple):
    """The objective at given parameters, its gradient, the result code, and what the schedule has solved for."""

    objective: jax.Array
    gradients: Params
    result: jax.Array
    solved: Found


@dataclass(frozen=True)
class Training:
    """A problem, how its states and adjoints are solved for, and where its layers live.

    Parameters are kept in the schedule's partition of the layers: leading axis slots, some of them padding. Gradients
    are those of the differentiable leaves, and zero in the padding.
    """

    problem: Problem
    schedule: Schedule
    setting: Setting

    @property
    def backend(self) -> Backend:
        """Where the layers live."""
        return self.setting.backend

    def storage(self, layers: int) -> Storage:
        """How parameters of N layers, and what optimisers keep of them, are stored."""
        return Storage(layers, self.schedule.level(layers, self.setting).slots, self.backend)

    @property
    def _parts(self) -> int:
        """Parts of the batch, where a loss is computed from one of them."""
        return self.backend.batch_parts

    def start(self, params: Params, batch: tuple[Any, Any]) -> Start:
        """Check parameters and batch, and make copies that may be donated.

        Raises:
            TypeError, ValueError: parameters, batch and problem that do not fit together, or values that are not
                finite.
        """
        problem = self.problem
        if not isinstance(params, Params):
            raise TypeError(f"params is a {type(params).__name__}; give jm.Params(opening, layers, closing).")
        if not isinstance(batch, tuple) or len(batch) != 2:
            raise TypeError("batch must be a tuple (x, y) of inputs and targets.")
        layers = number_of_layers(problem, params.layers)
        for name in Params._fields:
            check_carry(getattr(params, name), f"params.{name}")
        check_finite(params, "params")
        check_finite(batch, "batch")
        known = self.backend.replicate(fingerprint(batch))
        batch = self.backend.split_batch(batch)
        u0 = check_state(problem.opening(params.opening, batch[0]), "opening(params.opening, x)")
        # A step that wants a context or a key can be looked at where there is one: in the first iteration.
        if not takes_common(problem, params):
            hidden_layers(problem, params, u0, NOTHING, self.setting.solvers, self.backend, layers)
        check_objective(problem, params, u0, batch[1])
        # Made where they belong, so that no device ever holds those of all layers.
        warm = jax.jit(lambda u0: self._cold(u0, layers))(u0)
        # Copies, so that no two leaves share a buffer and donating the state never eats the caller's arrays.
        params, warm = copies((params, warm))
        return Start(self.spread(params, layers), warm, layers, copies(known))

    def cold(self, params: Params, warm: Warm, batch: tuple[Any, Any], layers: int) -> PyTree:
        """Warm values for another batch, at laid-out parameters: cold but for what the schedule carries on."""
        x, _ = self.backend.split_batch(batch)
        u0 = check_state(self.problem.opening(params.opening, x), "opening(params.opening, x)")
        if carry_on := getattr(self.schedule, "cold", None):
            return self.backend.scatter_states(carry_on(warm, layers, u0, self.setting))
        return self._cold(u0, layers)

    def carried(self, warm: Warm) -> PyTree:
        """Of warm values what goes on to another batch, where every step starts cold; the others are forgotten."""
        carry_on = getattr(self.schedule, "carried", None)
        return carry_on(warm) if carry_on else tuple(None for _ in warm)

    def opening_of(self, warm: Warm, known: jax.Array | None, batch: tuple[Any, Any]) -> Opening:
        """Warm values as they are, with a code if a batch is not, by its fingerprint, the one they belong to."""
        if known is None or not jax.tree.leaves(warm):
            return Opening(warm, SAME, known)
        own = fingerprint(batch)
        same = (known == UNKNOWN) | (known == own)
        code = jnp.where(same, SAME, Result.OTHER_BATCH.value).astype(jnp.int32)
        return Opening(warm, code, self.backend.replicate(own))

    def _cold(self, u0: State, layers: int) -> PyTree:
        return self.backend.scatter_states(self.schedule.init(layers, u0, self.setting))

    def network(self, params: Params, u0: State, layers: int, extra: Extra) -> tuple[Network, Setting]:
        """The hidden layers at laid-out parameters, and the setting with solvers that suit them."""
        level = self.schedule.level(layers, self.setting)
        network, [solver, adjoint] = hidden_layers(
            self.problem, params, u0, extra, self.setting.solvers, self.backend, layers, level
        )
        return network, Setting(solver, adjoint, self.backend)

    def evaluate(
        self, params: Params, warm: Warm, batch: tuple[Any, Any], layers: int, extra: Extra = NOTHING
    ) -> Evaluated:
        """The objective and its gradient at laid-out parameters, from warm values; `solved.warm` are the next ones."""
        problem, backend = self.problem, self.backend
        x, y = backend.split_batch(batch)
        differentiable, others = split(params)

        def opening(p: Arrays) -> PyTree:
            return check_state(problem.opening(merge(p, others.opening), x))

        def head(u_final: State) -> Head:
            def loss(p: Arrays, u: State) -> Any:
                value, aux = problem.loss(merge(p, others.closing), u, y)
                # A part's loss is the mean over its own samples; summed over the parts, each counts 1/parts.
                return value / self._parts, aux

            (value, aux), (d_closing, lam_final) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
                differentiable.closing, u_final
            )
            value, d_closing = backend.data_total((value, d_closing))
            return Head(value, self._mean_over_parts(aux), d_closing, lam_final)

        u0, pull_opening = jax.vjp(opening, differentiable.opening)
        check_warm(warm, u0)
        network, setting = self.network(params, u0, layers, extra)
        solved = self.schedule.gradient(network, u0, head, warm, setting)
        d_opening = backend.data_total(pull_opening(solved.lam_initial)[0])
        # Of layers that are numbered the parameters are one half.
        d_layers = solved.layers.theta if isinstance(solved.layers, Layer) else solved.layers
        gradients = Params(d_opening, d_layers, solved.head.d_closing, solved.shared)
        objective = solved.head.loss + solved.running_cost.astype(solved.head.loss.dtype)
        if problem.penalty is not None:
            value, more = penalty_gradient(problem.penalty, differentiable, others, layers, backend)
            objective, gradients = objective + value, jax.tree.map(jnp.add, gradients, more)
        # Moved from an adjoint's partition of other intervals, padding holds the edge layer's: norms would count it.
        gradients = gradients._replace(layers=self.mask(gradients.layers, layers))
        solved = solved._replace(warm=self.place_warm(solved.warm))
        # Running cost and penalty may overflow where both solves are finite.
        code = jnp.where(jnp.isfinite(objective), solved.result, Result.NOT_FINITE.value)
        return Evaluated(objective, gradients, code, solved)

    def objective_of(
        self, others: Params, warm: PyTree, batch: tuple[Any, Any], layers: int, extra: Extra = NOTHING
    ) -> Callable[..., Any]:
        """The objective as a function of plain parameters (leading axis N), for optimisers that search along a line.

        Its value and derivative are those of one iteration from given warm values: as inexact as a step's.

        Args:
            others: the laid-out parameters' leaves that are not differentiated.
            warm: where the state and adjoint solves start from.
            batch: (x, y).
            layers: N.
            extra: what the batch comes with.
        """

        def at(params: Params) -> Evaluated:
            return self.evaluate(merge(self.spread(params, layers), others), warm, batch, layers, extra)

        # Not the derivative of the cycles: an optimiser gets the schedule's own inexact gradient.
        @jax.custom_vjp
        def objective(params: Params) -> jax.Array:
            return at(params).objective

        def forward(params: Params) -> tuple[jax.Array, Params]:
            evaluated = at(params)
            return evaluated.objective, self.storage(layers).load_params(evaluated.gradients)

        def backward(gradients: Params, cotangent: jax.Array) -> tuple[Params]:
            return (jax.tree.map(lambda g: g * cotangent.astype(g.dtype), gradients),)

        objective.defvjp(forward, backward)
        return lambda params: objective(params)

    def exact(self, params: Params, batch: tuple[Any, Any], layers: int, extra: Extra = NOTHING) -> tuple[Any, Any]:
        """Loss and aux of the network evaluated one layer after another, at laid-out parameters."""
        x, y = batch
        u0 = check_state(self.problem.opening(params.opening, x), "opening(params.opening, x)")
        # Undivided: loss and aux of the whole batch, on every device.
        level, backend = self.schedule.level(layers, self.setting), self.backend.undivided()
        network, _ = hidden_layers(self.problem, params, u0, extra, (), backend, layers, level)
        u_final = propagate_exactly(network, u0, level, backend)
        return self.problem.loss(params.closing, u_final, y)

    def _mean_over_parts(self, aux: Arrays) -> PyTree:
        """The floating-point leaves of what each part of the batch has, averaged; the others as they are."""
        if self._parts == 1:
            return aux
        averaged, others = split(aux)
        total = self.backend.data_total(averaged)
        return merge(jax.tree.map(lambda x: x / self._parts, total), others)

    def objective(
        self, params: Params, ends: State, batch: tuple[Any, Any], layers: int, extra: Extra, *, otherwise: PyTree
    ) -> tuple[jax.Array, PyTree]:
        """The objective alone, by a state solve from C-points, and the C-points it leaves.

        C-points that are not finite would spoil every later solve: then `otherwise` is handed on.
        """
        problem, backend = self.problem, self.backend
        x, y = backend.split_batch(batch)
        u0 = check_state(problem.opening(params.opening, x))
        network, (solver, *_) = self.network(params, u0, layers, extra)
        sol = solve_network(network, u0, solver, None if ends is None else CPoints(u0, ends), backend)
        loss, _ = problem.loss(params.closing, sol.u_final, y)
        loss = backend.data_total(loss / self._parts)
        objective = loss + total_running_cost(network, sol, backend).astype(loss.dtype)
        if problem.penalty is not None:
            objective = objective + penalty_value(problem.penalty, params, layers, backend)
        if ends is not None:
            ends = self.place_warm(where(sol.result != Result.NOT_FINITE.value, sol.c_points.ends, otherwise))
        return objective, ends

    def spread(self, params: Params, layers: int) -> Params:
        """Lay whole parameters out and spread the layers; give the others to all devices."""
        level = self.schedule.level(layers, self.setting)
        return self._with_layers(params, self.backend.scatter(lay_out(params.layers, level)))

    def place(self, params: Params) -> Params:
        """Let parameters that were computed from laid-out ones stay where `spread` puts them."""
        return self._with_layers(params, self.backend.keep(params.layers))

    def _with_layers(self, params: Params, layers: Layers) -> Params:
        replicate = self.backend.replicate
        return Params(replicate(params.opening), layers, replicate(params.closing), replicate(params.shared))

    def place_warm(self, warm: Warm) -> PyTree:
        """Spread warm values, as an iteration leaves them, over the devices."""
        return self.backend.keep_states(warm)

    def mask(self, tree: Arrays, layers: int) -> PyTree:
        """Zero what belongs to padding, in arrays by slot."""

        def one(x: Arrays) -> Any:
            if self.backend.blocks * x.shape[0] == layers:
                return x
            # By process: outside `lift` a process has one block, however many devices it drives.
            slot = self.backend.block * x.shape[0] + jnp.arange(x.shape[0], dtype=jnp.int32)
            return where(slot < layers, x, jnp.zeros_like(x))

        return jax.tree.map(one, tree)

    def trainable(self, params: Params, layers: int) -> Params:
        """The differentiable leaves, with the padding of the layers set to zero so that it adds nothing to any norm."""
        differentiable = split(params)[0]
        return differentiable._replace(layers=self.mask(differentiable.layers, layers))

    def whole(self, params: Params, layers: int) -> Params:
        """Parameters as the user knows them, layers with leading axis N; copies."""
        return copies(params._replace(layers=first_layers(self.backend.gather(params.layers), layers)))

    def norm(self, gradients: Params) -> jax.Array:
        """Euclidean norm over all parameters."""
        whole = optax.tree.norm(gradients._replace(layers=None), squared=True)
        if not jax.tree.leaves(gradients.layers):
            return jnp.sqrt(whole)
        return jnp.sqrt(self.backend.total(optax.tree.norm(gradients.layers, squared=True)) + whole)
