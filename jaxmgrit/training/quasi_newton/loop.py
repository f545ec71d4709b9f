"""The published one-shot loop: a quasi-Newton direction and a line search whose trials are inexact, warm solves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmgrit._checks import check_backend, check_solver, integer, is_real
from jaxmgrit._pytree import copies, merge, split, subtract, where
from jaxmgrit.backend.local import LOCAL, Local
from jaxmgrit.solvers.mgrit.solver import MGRIT
from jaxmgrit.solvers.result import worse
from jaxmgrit.solvers.sequential import match_segments
from jaxmgrit.system.partition import lay_out
from jaxmgrit.training.objective import Evaluated, Training
from jaxmgrit.training.optimizer_state import layer_axes
from jaxmgrit.training.quasi_newton.hessian import BFGS, LBFGS, Hessian, Space, SteepestDescent, dot
from jaxmgrit.training.quasi_newton.line_search import Search, backtrack
from jaxmgrit.training.quasi_newton.outcome import Outcome, PublishedInfo
from jaxmgrit.training.schedules.base import Setting
from jaxmgrit.training.schedules.cycles_then_gradient import CyclesThenGradient
from jaxmgrit.training.snapshot import Snapshot, export, restore
from jaxmgrit.training.state import TrainState
from jaxmgrit.training.warm import UNKNOWN

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, State
    from jaxmgrit.backend.base import Backend
    from jaxmgrit.solvers.base import Solver
    from jaxmgrit.training.problem import Params, Problem

PyTree = Any


class Memory(NamedTuple):
    """What the direction is made from, scaled as the inner product asks.

    Attributes:
        hessian: pairs, or the dense approximation.
        x: trainable parameters at the last iteration.
        gradient: there.
    """

    hessian: PyTree
    x: Params
    gradient: Params


@dataclass(frozen=True)
class PublishedLoop:
    """The published full-batch loop: state, adjoint, gradient, quasi-Newton direction, Armijo backtracking.

    Every state solve, those of the line search's trials included, does the solver's cycles from the C-points that the
    previous state solve has left, whatever trial it belonged to (but those of the iteration's own solve where a trial
    has left values that are not finite). A pair of
    differences enters the Hessian's approximation only if its curvature is positive; a line search that fails leaves
    the parameters as they are and forgets the pairs (see `Outcome`). The same shape as `OneShot`, and the same
    `batch` at every step.

    Args:
        problem: what is trained.
        solver: `MGRIT(coarsening_factor=2, cycles=2)` by default, as published.
        adjoint: likewise.
        hessian: `LBFGS(memory=20)`, `BFGS()` for small networks, or `SteepestDescent()`.
        initial_step: step size of every line search's first trial, > 0; each further trial halves it.
        ls_max: trials per line search, >= 1.
        c1: of the Armijo condition, in (0, 1).
        gtol: where the gradient's norm is below, no more steps are taken; >= 0.
        inner_product: "euclidean" as published, or "l2": that of L2(0, T), h sum_n <theta^n, eta^n> for the layers,
            under which gradient, pairs and norm do not depend on the number of layers a theta(t) is sampled by (the
            gradient with respect to theta(t) is that with respect to theta^n divided by h).
        backend: where the layers live, `Local()` by default.

    Raises:
        ValueError, TypeError: an option is out of its range; the message names it.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> problem = jm.Problem(
        ...     opening=lambda p, x: x @ p,
        ...     step=lambda p, u, h: u + h * jnp.tanh(u @ p),
        ...     loss=lambda p, u, y: (jnp.mean((u @ p - y) ** 2), None),
        ...     h=1 / 64,
        ... )
        >>> params = jm.Params(jnp.ones((2, 4)), 0.1 * jnp.ones((64, 4, 4)), jnp.ones((4, 1)))
        >>> batch = (jnp.ones((8, 2)), jnp.zeros((8, 1)))
        >>> trainer = jm.PublishedLoop(problem, hessian=jm.LBFGS(memory=10))
        >>> state = trainer.init(params, batch)
        >>> update = jax.jit(trainer.step, donate_argnums=0)
        >>> for _ in range(3):
        ...     state, info = update(state, batch)  # info.objective, info.grad_norm, info.step_size, info.trials

    Source: Guenther et al. 2020 (arXiv 1812.04352), section 3.4, algorithm 2.
    """

    problem: Problem
    solver: Solver | None = None
    adjoint: Solver | None = None
    hessian: Hessian = LBFGS()
    initial_step: float = 1.0
    ls_max: int = 20
    c1: float = 1e-4
    gtol: float = 0.0
    inner_product: Literal["euclidean", "l2"] = "euclidean"
    backend: Backend = Local()

    def __post_init__(self) -> None:
        for name in ("solver", "adjoint"):
            if getattr(self, name) is not None:
                check_solver(f"PublishedLoop: {name}", getattr(self, name))
        check_backend(self.backend, "PublishedLoop: backend")
        if not isinstance(self.hessian, (SteepestDescent, LBFGS, BFGS)):
            raise TypeError(
                f"PublishedLoop: hessian={self.hessian!r} is not an approximation of the Hessian; give "
                "jm.LBFGS(memory=20), jm.BFGS() or jm.SteepestDescent()."
            )
        integer("PublishedLoop", "ls_max", self.ls_max, 1)
        for name, fits, range_ in (
            ("initial_step", lambda x: x > 0, "> 0"),
            ("c1", lambda x: 0 < x < 1, "between 0 and 1"),
            ("gtol", lambda x: x >= 0, ">= 0"),
        ):
            value = getattr(self, name)
            if not is_real(value) or not math.isfinite(value) or not fits(value):
                raise ValueError(f"PublishedLoop: {name}={value!r} is not a finite number {range_}.")
        if self.inner_product not in ("euclidean", "l2"):
            raise ValueError(
                f"PublishedLoop: inner_product={self.inner_product!r} is unknown; choose 'euclidean' or 'l2'."
            )
        h = self.problem.h
        if self.inner_product == "l2" and not isinstance(h, jax.core.Tracer) and not np.all(np.asarray(h) > 0):
            raise ValueError(f"PublishedLoop: inner_product='l2' needs step sizes > 0, but problem.h={h!r}.")

    @property
    def _training(self) -> Training:
        two_cycles = MGRIT(2, cycles=2)
        solver, adjoint = match_segments(self.solver or two_cycles, self.adjoint or two_cycles)
        return Training(self.problem, CyclesThenGradient(), Setting(solver, adjoint, self.backend))

    def init(self, params: Params, batch: tuple[Any, Any]) -> TrainState:
        """The state before the first iteration: copies of the parameters, cold warm values, no pairs.

        Args:
            params: initial parameters.
            batch: (x, y), the whole training set.

        Raises:
            TypeError, ValueError: parameters, batch and problem that do not fit together, or values that are not
                finite; too many parameters for `BFGS()`.
        """
        training = self._training
        start = training.start(params, batch)
        seen = self._scaled(training.trainable(start.params, start.layers), 1.0, training, start.layers)
        memory = copies(self._first_memory(seen, Space(self.backend, start.layers)))
        memory = training.storage(start.layers).place(memory, self._axes(start.params, start.layers))
        iteration = self.backend.replicate(jnp.zeros((), jnp.int32))
        return TrainState(start.params, memory, start.warm, iteration, start.layers, start.batch)

    def _first_memory(self, seen: Params, space: Space) -> Memory:
        return Memory(self.hessian.init(seen, space), seen, jax.tree.map(jnp.zeros_like, seen))

    def _axes(self, params: Params, layers: int) -> PyTree:
        """The axis over the layers of every leaf of the memory."""

        def plain(seen: Params) -> Memory:
            # `layer_axes` asks with N and with N + 1 layers: how many there are, only the shapes tell.
            count = next((x.shape[0] for x in jax.tree.leaves(seen.layers)), layers)
            return self._first_memory(seen, Space(LOCAL, count))

        return layer_axes(plain, self._training.storage(layers).shapes(split(params)[0]), layers)

    def export(self, state: TrainState) -> Snapshot:
        """The state as NumPy arrays that belong to no layout, to be saved or restored; see `OneShot.export`."""
        return export(self._training, state, self._axes(state.params, state.layers))

    def restore(self, state: TrainState, snapshot: Snapshot) -> TrainState:
        """Undo `export`; see `OneShot.restore`."""
        axes = self._axes(state.params, state.layers)
        batch = None if state.batch is None else self.backend.replicate(jnp.full_like(state.batch, UNKNOWN))
        return TrainState(*restore(self._training, state, axes, snapshot), state.layers, batch)

    def evaluate(self, state: TrainState, batch: tuple[Any, Any]) -> tuple[Any, Any]:
        """The loss and its aux of the network evaluated exactly, see `OneShot.evaluate`."""
        return self._training.exact(state.params, batch, state.layers)

    def params(self, state: TrainState) -> Params:
        """The parameters, layers with leading axis N; copies, which donating the state does not eat."""
        return self._training.whole(state.params, state.layers)

    def step(self, state: TrainState, batch: tuple[Any, Any]) -> tuple[TrainState, PublishedInfo]:
        """One iteration: inexact objective and gradient, direction, line search.

        Pure; jit it once outside the loop: `jax.jit(trainer.step, donate_argnums=0)`.

        Args:
            state: from `init` or the last `step`.
            batch: (x, y), the same as in `init`.

        Returns:
            The next state, and `PublishedInfo` about this one.
        """
        training, layers = self._training, state.layers
        space, memory = Space(self.backend, layers), state.optimizer
        opening = training.opening_of(state.warm, state.batch, batch)
        here = training.evaluate(state.params, opening.warm, batch, layers)
        here = here._replace(result=worse(here.result, opening.result))
        x = self._scaled(training.trainable(state.params, layers), 1.0, training, layers)
        gradient = self._scaled(here.gradients, -1.0, training, layers)
        pair = subtract(x, memory.x), subtract(gradient, memory.gradient)
        hessian = self.hessian.remember(memory.hessian, *pair, space)
        direction = self.hessian.direction(hessian, gradient, space)
        slope = dot(gradient, direction, space)
        norm = jnp.sqrt(dot(gradient, gradient, space))
        converged = (norm < self.gtol) | (norm == 0)

        descent = self._scaled(direction, -1.0, training, layers)
        search = self._search(state.params, descent, here, slope, ~converged, batch, layers)
        params = training.place(_moved(state.params, descent, search.step_size, search.accepted))
        failed = ~converged & ~search.accepted
        memory = Memory(self.hessian.forget(hessian, failed), training.place(x), training.place(gradient))
        # The state goes on from the last trial, accepted or not; the adjoint from this iteration's own.
        warm = search.left, here.found.warm[1]
        iteration = self.backend.replicate(state.iteration + 1)
        after = TrainState(params, memory, warm, iteration, layers, opening.batch)
        return after, _info(here, norm, search, converged, failed)

    def _search(
        self,
        params: Params,
        descent: Params,
        here: Evaluated,
        slope: jax.Array,
        wanted: jax.Array,
        batch: tuple[Any, Any],
        layers: int,
    ) -> Search:
        training, backend = self._training, self.backend

        def trial(step_size: jax.Array, ends: State) -> tuple[jax.Array, PyTree]:
            moved = training.place(_moved(params, descent, step_size, jnp.ones((), bool)))
            return training.objective(moved, ends, batch, layers, otherwise=here.found.warm[0])

        return backtrack(
            trial,
            here.found.warm[0],
            here.objective,
            slope,
            initial_step=self.initial_step,
            c1=self.c1,
            most=self.ls_max,
            # H is positive definite: a slope that is not positive is rounding, or NaN, and no step size would do.
            wanted=wanted & (slope > 0),
            agree=backend.agree,
        )

    def _scaled(self, tree: Params, power: float, training: Training, layers: int) -> Params:
        """Layers times h^(power/2), which turns the inner product of L2(0, T) into the Euclidean one."""
        if self.inner_product == "euclidean":
            return tree
        root = jnp.sqrt(jnp.asarray(self.problem.h)) ** power
        if root.ndim == 1:
            level = training.schedule.level(layers, training.setting)
            root = self.backend.scatter(lay_out(root, level))

        def one(x: Arrays) -> Any:
            return x * jnp.reshape(root, root.shape + (1,) * (x.ndim - root.ndim if root.ndim else 0)).astype(x.dtype)

        return tree._replace(layers=jax.tree.map(one, tree.layers))


def _moved(params: Params, descent: Params, step_size: jax.Array, moved: jax.Array) -> Params:
    """Params - step_size descent, or params themselves."""
    differentiable, others = split(params)
    there = jax.tree.map(lambda x, d: x - step_size.astype(x.dtype) * d, differentiable, descent)
    return merge(where(moved, there, differentiable), others)


def _info(here: Evaluated, norm: jax.Array, search: Search, converged: jax.Array, failed: jax.Array) -> PublishedInfo:
    found = here.found
    outcome = jnp.where(converged, Outcome.CONVERGED.value, Outcome.STEP.value)
    return PublishedInfo(
        found.head.loss,
        found.head.aux,
        here.objective,
        norm,
        found.residual_norm,
        found.adjoint_residual_norm,
        here.result,
        jnp.where(search.accepted, search.step_size, 0.0),
        search.trials,
        jnp.where(failed, Outcome.LINE_SEARCH_FAILED.value, outcome).astype(jnp.int32),
    )
