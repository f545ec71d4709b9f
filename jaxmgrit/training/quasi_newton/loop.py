"""The published one-shot loop: a quasi-Newton direction and a line search whose trials are inexact, warm solves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmgrit._checks import integer, is_real
from jaxmgrit._pytree import merge, split, subtract, where
from jaxmgrit.backend.local import LOCAL, Local
from jaxmgrit.solvers.mgrit.solver import MGRIT
from jaxmgrit.solvers.result import worse
from jaxmgrit.system.partition import lay_out
from jaxmgrit.training.common import Extra
from jaxmgrit.training.quasi_newton.hessian import BFGS, LBFGS, Hessian, Space, SteepestDescent, dot
from jaxmgrit.training.quasi_newton.line_search import Search, backtrack
from jaxmgrit.training.quasi_newton.outcome import Outcome, PublishedInfo
from jaxmgrit.training.schedules.cycles_then_gradient import CyclesThenGradient
from jaxmgrit.training.state import TrainState
from jaxmgrit.training.trainer import Trainer

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, State
    from jaxmgrit.backend.base import Backend
    from jaxmgrit.solvers.base import Solver
    from jaxmgrit.system.partition import Level
    from jaxmgrit.training.objective import Evaluated, Training
    from jaxmgrit.training.problem import Problem
    from jaxmgrit.training.state import Params

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
class PublishedLoop(Trainer):
    """The published full-batch loop: state, adjoint, gradient, quasi-Newton direction, Armijo backtracking.

    Every state solve, those of the line search's trials included, does the solver's cycles from the C-points that the
    previous state solve has left, whatever trial it belonged to (but those of the iteration's own solve where a trial
    has left values that are not finite). A pair of differences enters the Hessian's approximation only if its curvature
    is positive; a line search that fails leaves the parameters as they are and forgets the pairs (see `Outcome`). The
    same shape as `OneShot`, and by default the same `batch` at every step.

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
        start: where the cycles of an iteration start from, as for `OneShot`: "warm", where the last one's ended; or
            "cold", from the default guess, for a key per iteration or batches that do not come again (the trials of a
            line search always go on from the solve before them). Pairs of differences between two draws or batches are
            noise: take `SteepestDescent()` there.

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
    start: Literal["warm", "cold"] = "warm"
    _starts: ClassVar[tuple[str, ...]] = ("warm", "cold")

    def __post_init__(self) -> None:
        self._check_options()
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
    def training(self) -> Training:
        """What this trainer shares with others: objective and inexact gradient at laid-out parameters."""
        return self._training(MGRIT(2, cycles=2), CyclesThenGradient())

    @property
    def _first_memory(self) -> Callable[[Params], Memory]:
        return self._memory

    def _memory(self, params: Params) -> Memory:
        # How many layers there are, only the shapes tell: `layer_axes` asks with one more.
        layers = next((x.shape[0] for x in jax.tree.leaves(params.layers)), 0)
        return Memory(self.hessian.init(params, Space(LOCAL, layers)), params, jax.tree.map(jnp.zeros_like, params))

    def _measured(self, params: Params) -> Params:
        return self._scaled(params, 1.0)

    def step(
        self, state: TrainState, batch: tuple[Any, Any], *, context: PyTree = None, key: Any = None
    ) -> tuple[TrainState, PublishedInfo]:
        """One iteration: inexact objective and gradient, direction, line search.

        Pure; jit it once outside the loop: `jax.jit(trainer.step, donate_argnums=0)`.

        Args:
            state: from `init` or the last `step`.
            batch: (x, y), the same as in `init`; any with start="cold".
            context: what the batch comes with (masks, conditioning), any pytree, see `Common`.
            key: this iteration's, for random layers (dropout, stochastic depth), see `Common`; gradient and trials of
                an iteration have the same masks.

        Returns:
            The next state, and `PublishedInfo` about this one.

        Raises:
            ValueError: `key` where warm values are kept.
        """
        training, layers, extra = self.training, state.layers, Extra(context, key)
        self._check_key(state, key)
        space, memory = Space(self.backend, layers), state.optimizer
        opening = self._opening(state, batch)
        evaluated = training.evaluate(state.params, opening.warm, batch, layers, extra)
        evaluated = evaluated._replace(result=worse(evaluated.result, opening.result))
        level = training.schedule.level(layers, training.setting)
        x = self._scaled(training.trainable(state.params, layers), 1.0, level)
        gradient = self._scaled(evaluated.gradients, -1.0, level)
        pair = subtract(x, memory.x), subtract(gradient, memory.gradient)
        hessian = self.hessian.remember(memory.hessian, *pair, space)
        direction = self.hessian.direction(hessian, gradient, space)
        slope = dot(gradient, direction, space)
        norm = jnp.sqrt(dot(gradient, gradient, space))
        converged = (norm < self.gtol) | (norm == 0)
        descent = self._scaled(direction, -1.0, level)
        ends, lam_ends = evaluated.solved.warm

        def trial(step_size: jax.Array, start: State) -> tuple[jax.Array, PyTree]:
            moved = training.place(_moved(state.params, descent, step_size, jnp.ones((), bool)))
            return training.objective(moved, start, batch, layers, extra, otherwise=ends)

        search = backtrack(
            trial,
            ends,
            evaluated.objective,
            slope,
            initial_step=self.initial_step,
            c1=self.c1,
            most=self.ls_max,
            # H is positive definite: a slope that is not positive is rounding, or NaN, and no step size would do.
            wanted=~converged & (slope > 0),
            agree=self.backend.agree,
        )
        params = training.place(_moved(state.params, descent, search.step_size, search.accepted))
        failed = ~converged & ~search.accepted
        memory = Memory(self.hessian.forget(hessian, failed), training.place(x), training.place(gradient))
        # The state goes on from the last trial, accepted or not; the adjoint from this iteration's own.
        warm: tuple[PyTree, ...] = (search.left, lam_ends)
        warm = training.carried(warm) if self.start == "cold" else warm
        iteration = self.backend.replicate(state.iteration + 1)
        after = TrainState(params, memory, warm, iteration, layers, opening.batch)
        return after, _info(evaluated, norm, search, converged, failed)

    def _scaled(self, tree: Params, power: float, level: Level | None = None) -> Params:
        """Layers times h^(power/2), which turns the inner product of L2(0, T) into the Euclidean one.

        They have leading axis N, or are laid out in slots and spread where `level` says how.
        """
        if self.inner_product == "euclidean":
            return tree
        root = jnp.sqrt(jnp.asarray(self.problem.h)) ** power
        if root.ndim == 1 and level is not None:
            root = self.backend.scatter(lay_out(root, level))

        def one(x: Arrays) -> Any:
            return x * jnp.reshape(root, root.shape + (1,) * (x.ndim - root.ndim if root.ndim else 0)).astype(x.dtype)

        return tree._replace(layers=jax.tree.map(one, tree.layers))


def _moved(params: Params, descent: Params, step_size: jax.Array, moved: jax.Array) -> Params:
    """Params - step_size descent, or params themselves."""
    differentiable, others = split(params)
    lowered = jax.tree.map(lambda x, d: x - step_size.astype(x.dtype) * d, differentiable, descent)
    return merge(where(moved, lowered, differentiable), others)


def _info(
    evaluated: Evaluated, norm: jax.Array, search: Search, converged: jax.Array, failed: jax.Array
) -> PublishedInfo:
    solved = evaluated.solved
    outcome = jnp.where(converged, Outcome.CONVERGED.value, Outcome.STEP.value)
    return PublishedInfo(
        solved.head.loss,
        solved.head.aux,
        evaluated.objective,
        norm,
        solved.residual_norm,
        solved.adjoint_residual_norm,
        evaluated.result,
        jnp.where(search.accepted, search.step_size, 0.0),
        search.trials,
        jnp.where(failed, Outcome.LINE_SEARCH_FAILED.value, outcome).astype(jnp.int32),
    )
