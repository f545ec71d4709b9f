"""One-shot training: a few cycles per optimiser update, warm-started, with inexact gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmgrit.backend.base import Backend
from jaxmgrit.backend.local import Local
from jaxmgrit.checks import alike, check_backend, check_finite, check_layers, check_state, describe
from jaxmgrit.hierarchy import lay_out
from jaxmgrit.network import make_network
from jaxmgrit.options import MGRIT, Solver, check_solver, match_segments
from jaxmgrit.problem import Params, Problem, check_objective
from jaxmgrit.pytree import merge, split, where
from jaxmgrit.schedule import CyclesThenGradient, Head, PredictThenSweep, Schedule, Setting
from jaxmgrit.solution import Result
from jaxmgrit.spread import init_optimizer, update_optimizer

PyTree = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything training carries from one iteration to the next; donate it to the jitted step.

    Attributes:
        params: parameters; the layers are kept in the schedule's partition (see `OneShot.params` for the plain ones).
        optimizer: the optimiser's state.
        warm: the schedule's warm values, which belong to the samples they were computed for.
        iteration: updates done so far.
        layers: N.
    """

    params: Params
    optimizer: PyTree
    warm: PyTree
    iteration: jax.Array
    layers: int = field(metadata={"static": True})


class Info(NamedTuple):
    """What an iteration saw, at the parameters before its update.

    Attributes:
        loss: at the (inexact) final state.
        aux: the loss function's aux.
        objective: loss, running cost and penalty.
        grad_norm: Euclidean norm of the (inexact) gradient of the objective.
        residual_norm: of the state, the last recorded; 0 for a sequential solve.
        adjoint_residual_norm: of the adjoint, likewise.
        result: the worse of the two solves' codes, see `Result` and `check`.
    """

    loss: jax.Array
    aux: PyTree
    objective: jax.Array
    grad_norm: jax.Array
    residual_norm: jax.Array
    adjoint_residual_norm: jax.Array
    result: jax.Array


@dataclass(frozen=True)
class OneShot:
    """Simultaneous training on a fixed batch: state, adjoint and parameters converge together.

    Args:
        problem: what is trained.
        optimizer: any optax transformation. Integer and key leaves of the parameters are left alone.
        solver: `MGRIT(cycles=1)` by default; a few cycles are for a fixed batch, many are conventional training.
        adjoint: likewise.
        schedule: `CyclesThenGradient()` (the default, as published) or `PredictThenSweep()`.
        backend: where the layers live, `Local()` by default.

    Warm values belong to the samples they were computed for: with changing batches keep one `warm` per batch, or start
    cold by `init` (whose optimiser state you replace by the current one).

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxmgrit as jm
        >>> problem = jm.Problem(
        ...     opening=lambda p, x: x @ p,
        ...     step=lambda p, u, h: u + h * jnp.tanh(u @ p),
        ...     loss=lambda p, u, y: (jnp.mean((u @ p - y) ** 2), None),
        ...     h=1 / 64,
        ... )
        >>> params = jm.Params(jnp.ones((2, 4)), 0.1 * jnp.ones((64, 4, 4)), jnp.ones((4, 1)))
        >>> batch = (jnp.ones((8, 2)), jnp.zeros((8, 1)))
        >>> trainer = jm.OneShot(problem, optax.adam(1e-2))
        >>> state = trainer.init(params, batch)
        >>> update = jax.jit(trainer.step, donate_argnums=0)
        >>> for _ in range(3):
        ...     state, info = update(state, batch)

    Source: Guenther et al. 2020 (arXiv 1812.04352), section 3.4.
    """

    problem: Problem
    optimizer: optax.GradientTransformation
    solver: Solver | None = None
    adjoint: Solver | None = None
    schedule: Schedule = CyclesThenGradient()
    backend: Backend = Local()

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, (CyclesThenGradient, PredictThenSweep)):
            raise TypeError(
                f"OneShot: schedule={self.schedule!r} is not a schedule; "
                "give jm.CyclesThenGradient() or jm.PredictThenSweep()."
            )
        for name in ("solver", "adjoint"):
            if getattr(self, name) is not None:
                check_solver(f"OneShot: {name}", getattr(self, name))
        check_backend(self.backend, "OneShot: backend")
        if not hasattr(self.optimizer, "update"):
            raise TypeError(
                f"OneShot: optimizer={self.optimizer!r} is not an optax transformation, such as optax.adam(1e-2)."
            )

    @property
    def _setting(self) -> Setting:
        one_cycle = MGRIT(cycles=1)
        solver, adjoint = match_segments(self.solver or one_cycle, self.adjoint or one_cycle)
        return Setting(solver, adjoint, self.backend)

    def init(self, params: Params, batch: tuple[Any, Any]) -> TrainState:
        """The state before the first iteration: copies of the parameters, cold warm values.

        Args:
            params: initial parameters.
            batch: (x, y), the whole training set.

        Raises:
            TypeError, ValueError: parameters, batch and problem that do not fit together, or values that are not
            finite.
        """
        problem, setting = self.problem, self._setting
        if not isinstance(params, Params):
            raise TypeError(f"params is a {type(params).__name__}; give jm.Params(opening, layers, closing).")
        if not isinstance(batch, tuple) or len(batch) != 2:
            raise TypeError("batch must be a tuple (x, y) of inputs and targets.")
        check_finite(params, "params")
        check_finite(batch, "batch")
        layers = check_layers(params.layers, "params.layers")
        u0 = check_state(problem.opening(params.opening, batch[0]), "opening(params.opening, x)")
        make_network(
            problem.step,
            params.layers,
            u0,
            problem.h,
            setting.solver,
            setting.adjoint,
            running_cost=problem.running_cost,
        )
        check_objective(problem, params, u0, batch[1])
        level = self.schedule.level(layers, setting)
        warm = self.schedule.init(layers, u0, setting)
        # Copies, so that no two leaves share a buffer and donating the state never eats the caller's arrays.
        params, warm = _copies((params, warm))
        params = self._place(params._replace(layers=lay_out(params.layers, level)), cut=True)
        optimizer = _copies(init_optimizer(self.optimizer, self._seen_by_optimizer(params, layers), setting.backend))
        iteration = setting.backend.replicate(jnp.zeros((), jnp.int32))
        return TrainState(params, optimizer, setting.backend.scatter(warm), iteration, layers)

    def _place(self, params: Params, cut: bool = False) -> Params:
        """Spread the layers, give the opening and closing to all devices; `cut` where the layers are whole as yet."""
        place = self.backend.scatter if cut or not self.backend.cut else self.backend.replicate
        replicate = self.backend.replicate
        return Params(replicate(params.opening), place(params.layers), replicate(params.closing))

    def _seen_by_optimizer(self, params: Params, layers: int) -> Params:
        """The differentiable leaves, with the padding of the layers set to zero so that it adds nothing to any norm."""
        differentiable = split(params)[0]
        return differentiable._replace(layers=self._mask(differentiable.layers, layers))

    def _mask(self, tree: PyTree, layers: int) -> PyTree:
        """Zero what belongs to padding, in arrays by slot."""
        block = self.backend.index() if self.backend.cut else 0

        def one(x: Any) -> Any:
            slot = block * x.shape[0] + jnp.arange(x.shape[0], dtype=jnp.int32)
            return where(slot < layers, x, jnp.zeros_like(x))

        return jax.tree.map(one, tree)

    def params(self, state: TrainState) -> Params:
        """The parameters, layers with leading axis N; copies, which donating the state does not eat."""
        whole = state.params._replace(layers=_cut(self.backend.gather(state.params.layers), state.layers))
        return _copies(whole)

    def step(self, state: TrainState, batch: tuple[Any, Any]) -> tuple[TrainState, Info]:
        """One iteration: inexact loss and gradient, one optimiser update.

        Pure; jit it once outside the loop: `jax.jit(trainer.step, donate_argnums=0)`.

        Args:
            state: from `init` or the last `step`.
            batch: (x, y), the same as in `init`.

        Returns:
            The next state, and `Info` about this one.
        """
        problem, setting, layers = self.problem, self._setting, state.layers
        x, y = batch
        differentiable, others = split(state.params)

        def opening(p: PyTree) -> PyTree:
            return check_state(problem.opening(merge(p, others.opening), x))

        def head(u_final: PyTree) -> Head:
            def loss(p: PyTree, u: PyTree) -> Any:
                return problem.loss(merge(p, others.closing), u, y)

            (value, aux), derivatives = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
                differentiable.closing, u_final
            )
            return Head(value, aux, *derivatives)

        u0, pull_opening = jax.vjp(opening, differentiable.opening)
        network = make_network(
            problem.step,
            state.params.layers,
            u0,
            problem.h,
            setting.solver,
            setting.adjoint,
            running_cost=problem.running_cost,
            layers=layers,
        )
        _check_warm(state.warm, u0)
        found = self.schedule.gradient(network, u0, head, state.warm, setting)
        gradients = Params(pull_opening(found.lam_initial)[0], found.layers, found.head.d_closing)
        objective = found.head.loss + found.running_cost.astype(found.head.loss.dtype)
        if problem.penalty is not None:
            value, extra = self._penalty(differentiable, others, layers)
            objective, gradients = objective + value, jax.tree.map(jnp.add, gradients, extra)
        gradients = gradients._replace(layers=self._mask(gradients.layers, layers))

        seen = self._seen_by_optimizer(state.params, layers)
        updates, optimizer = update_optimizer(self.optimizer, gradients, state.optimizer, seen, setting.backend)
        updates = updates._replace(layers=self._mask(updates.layers, layers))
        params = self._place(merge(optax.apply_updates(differentiable, updates), others))
        code = jnp.where(jnp.isfinite(objective), found.result, Result.NOT_FINITE.value)
        info = Info(
            found.head.loss,
            found.head.aux,
            objective,
            _norm(gradients, setting.backend),
            found.residual_norm,
            found.adjoint_residual_norm,
            code,
        )
        warm = found.warm if self.backend.cut else self.backend.scatter(found.warm)
        return TrainState(params, optimizer, warm, self.backend.replicate(state.iteration + 1), layers), info

    def _penalty(self, differentiable: Params, others: Params, layers: int) -> tuple[jax.Array, Params]:
        assert self.problem.penalty is not None
        penalty, backend = self.problem.penalty, self.backend

        def value(p: Params) -> Any:
            whole: Params = merge(p, others)
            return penalty(whole._replace(layers=_cut(whole.layers, layers)))

        whole = differentiable._replace(layers=backend.gather(differentiable.layers))
        others = others._replace(layers=backend.gather(others.layers))
        found, gradient = jax.value_and_grad(value)(whole)
        return found, gradient._replace(layers=backend.scatter(gradient.layers))


def _check_warm(warm: PyTree, u0: PyTree) -> None:
    """Raise a ValueError unless warm values (by interval) are those of states like u0."""
    for values in warm:
        own = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), values)
        if values is not None and not alike(own, u0):
            raise ValueError(
                f"the batch gives states {describe(u0)}, but the warm values belong to states {describe(own)}: "
                "they are those of the samples given to init. Step with the same batch, or call trainer.init anew."
            )


def _norm(gradients: Params, backend: Backend) -> jax.Array:
    """Euclidean norm over all parameters."""
    layers = backend.total(optax.tree.norm(gradients.layers, squared=True))
    return jnp.sqrt(layers + optax.tree.norm((gradients.opening, gradients.closing), squared=True))


def _copies(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def _cut(tree: PyTree, layers: int) -> PyTree:
    return jax.tree.map(lambda x: x[:layers], tree)
