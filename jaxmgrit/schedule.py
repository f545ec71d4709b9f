"""What one iteration of one-shot training does: "cycles, then gradient" and "predict, then sweep".

A schedule is a record of functions: `level` (the partition the layers are kept in), `init` (warm values for the first
iteration) and `gradient` (inexact gradient at given parameters, and warm values for the next iteration).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmgrit.adjoint import GRADIENT_SPECS, adjoint_network
from jaxmgrit.backend.base import REPLICATED, SHARDED, SHARDED_STATES, STATE, Backend, broadcast
from jaxmgrit.cycle import Grids, coarse_solve
from jaxmgrit.equation import Equation
from jaxmgrit.fas import residual_norm
from jaxmgrit.gradient import Gradients, vjp_sweep
from jaxmgrit.grids import Linearisation, adjoint_grids, state_grids, sweep_batch
from jaxmgrit.hierarchy import Level, build_levels
from jaxmgrit.network import Network
from jaxmgrit.options import MGRIT, Solver
from jaxmgrit.programs import cached
from jaxmgrit.pytree import add, all_finite, euclidean_norm, real_dtype, repeat, subtract
from jaxmgrit.solution import CPoints, Result
from jaxmgrit.solve import solve_network

PyTree = Any


class Head(NamedTuple):
    """The loss at the final state, with its derivatives."""

    loss: jax.Array
    aux: PyTree
    d_closing: PyTree
    lam_final: PyTree


class Found(NamedTuple):
    """What one iteration finds at given parameters: the loss, an inexact gradient, how inexact, and warm values."""

    head: Head
    layers: PyTree
    lam_initial: PyTree
    running_cost: jax.Array
    residual_norm: jax.Array
    adjoint_residual_norm: jax.Array
    result: jax.Array
    warm: PyTree


class Setting(NamedTuple):
    """Solvers and backend of a training."""

    solver: Solver
    adjoint: Solver
    backend: Backend


LossHead = Callable[[PyTree], Head]


@dataclass(frozen=True)
class CyclesThenGradient:
    """State cycles, loss, adjoint cycles, gradient: each warm-started from the previous iteration's.

    With many cycles, or with `Sequential()` for both solvers, this is conventional training.

    Source: Guenther et al. 2020 (arXiv 1812.04352), section 3.4.
    """

    def level(self, layers: int, setting: Setting) -> Level:
        """The partition the layers are kept in."""
        return build_levels(layers, setting.solver, setting.backend.size)[0]

    def init(self, layers: int, u0: PyTree, setting: Setting) -> PyTree:
        """Warm values: u^0 at all C-points of the state, zero at those of the adjoint. None for a sequential solver."""
        solver, adjoint, backend = setting
        state = build_levels(layers, solver, backend.size)
        reversed_ = build_levels(layers, adjoint, backend.size, front=True)
        ends = repeat(u0, state[0].intervals) if len(state) > 1 else None
        lam = jax.tree.map(jnp.zeros_like, repeat(u0, reversed_[0].intervals)) if len(reversed_) > 1 else None
        return ends, lam

    def warm_levels(self, layers: int, setting: Setting) -> tuple[Level, Level]:
        """The partitions the warm values belong to, one for each entry of `warm`."""
        solver, adjoint, backend = setting
        state = build_levels(layers, solver, backend.size)[0]
        return state, build_levels(layers, adjoint, backend.size, front=True)[0]

    def gradient(self, network: Network, u0: PyTree, head: LossHead, warm: PyTree, setting: Setting) -> Found:
        """One iteration's state solve, loss, adjoint solve and gradient."""
        solver, adjoint, backend = setting
        ends, lam_ends = warm
        sol = solve_network(network, u0, solver, _guess(u0, ends), backend)
        top = head(sol.u_final)
        adj, found = adjoint_network(
            network, sol, top.lam_final, adjoint, _guess(top.lam_final, lam_ends), backend, gradients=True
        )
        assert found is not None
        keep_state = None if ends is None else sol.c_points.ends
        keep_lam = None if lam_ends is None else adj.c_points.ends
        result = jnp.maximum(sol.result, adj.result)
        norms = _last(sol.residual_norms), _last(adj.residual_norms)
        return Found(top, found.slots.theta, adj.lam_initial, found.cost, *norms, result, (keep_state, keep_lam))


def _guess(initial: PyTree, ends: PyTree) -> CPoints | None:
    return None if ends is None else CPoints(initial, ends)


def _last(norms: jax.Array) -> jax.Array:
    """The last residual norm recorded; 0 where there is none (a sequential solve)."""
    recorded = ~jnp.isnan(norms)
    if norms.size == 0:
        return jnp.zeros((), norms.dtype)
    last = norms.size - 1 - jnp.argmax(recorded[::-1])
    return norms[last]


@dataclass(frozen=True)
class PredictThenSweep:
    """The coarse problem predicts state and adjoint at the new parameters; one fused sweep corrects and differentiates.

    The FAS right-hand sides of the last sweep are kept for state and adjoint (tau, sigma). An iteration solves the
    coarse problems with them (two levels: by one coarse recurrence each; more: by `cycles` cycles on the coarse
    levels), then runs one sweep over all intervals that gives the parameters' gradients and the mismatches tau and
    sigma are updated by. It costs little more than a sequential gradient on one device, and all of the sweep is
    parallel. Its fixed points are those of the exact method.

    Choose it for one-shot training at large N, with layers that start smooth in depth, `coarse_params=average`,
    `coarse_step=midpoint` and `optax.chain(anticipate(alpha), ...)`. Of the solvers it takes the hierarchy, the coarse
    step and the number of coarse cycles; it has no relaxation on the finest level, no tolerances and no skipped cycle.
    """

    def level(self, layers: int, setting: Setting) -> Level:
        """The partition the layers are kept in."""
        return self._levels(layers, setting)[0][0]

    def _levels(self, layers: int, setting: Setting) -> tuple[tuple[Level, ...], tuple[Level, ...]]:
        for name, solver in (("solver", setting.solver), ("adjoint", setting.adjoint)):
            if not isinstance(solver, MGRIT):
                raise ValueError(
                    f"PredictThenSweep: {name}={solver} has no coarse level; give jm.MGRIT(...), "
                    "or take schedule=jm.CyclesThenGradient() for sequential training."
                )
            for option, default in (("rtol", None), ("atol", None), ("skip_first_down", False)):
                if getattr(solver, option) != default:
                    raise ValueError(
                        f"PredictThenSweep: {name} has {option}={getattr(solver, option)!r}, which this "
                        "schedule cannot honour; "
                        f"leave it at {default!r}, or take schedule=jm.CyclesThenGradient()."
                    )
        state, adjoint = (
            build_levels(layers, s, setting.backend.size, ragged=True) for s in (setting.solver, setting.adjoint)
        )
        if len(state) < 2 or state[0] != adjoint[0]:
            raise ValueError(
                f"PredictThenSweep: {layers} layers give the state {len(state)} level(s) with "
                f"{state[0].factor} layers per interval "
                f"and the adjoint {len(adjoint)} with {adjoint[0].factor}; both need at least two levels "
                "and the same intervals: "
                "use one coarsening factor for both, smaller than the number of layers."
            )
        return state, adjoint

    def init(self, layers: int, u0: PyTree, setting: Setting) -> PyTree:
        """Warm values: no right-hand sides yet; with more than two levels also guesses for the coarse problems."""
        levels = self._levels(layers, setting)
        count = levels[0][0].intervals

        def zeros() -> PyTree:
            return jax.tree.map(jnp.zeros_like, repeat(u0, count))

        guess = repeat(u0, count) if len(levels[0]) > 2 else None
        return zeros(), zeros(), guess, zeros() if len(levels[1]) > 2 else None

    def warm_levels(self, layers: int, setting: Setting) -> tuple[Level, ...]:
        """The partitions the warm values belong to, one for each entry of `warm`."""
        return (self.level(layers, setting),) * 4

    def gradient(self, network: Network, u0: PyTree, head: LossHead, warm: PyTree, setting: Setting) -> Found:
        """Predict the state, loss, predict the adjoint, one fused sweep."""
        solver, adjoint, backend = setting
        state_levels, adjoint_levels = self._levels(network.layers, setting)
        if network.equation.h is not None or network.shared.h is not None:
            network = _step_size_per_layer(network, state_levels, u0)
        equations = network.with_coarse_step(solver), network.with_coarse_step(adjoint)
        slots = network.on(state_levels[0], backend)
        tau, sigma, guess, lam_guess = warm

        predict = _predict_program(equations[0], state_levels, solver, backend)
        ends, u_final = predict(slots, u0, network.shared, tau, guess)
        top = head(u_final)
        state_norm = solver.norm if isinstance(solver, MGRIT) else None
        sweep = _sweep_program(equations[1], adjoint_levels, adjoint, backend, state_norm)
        swept = sweep(slots, u0, network.shared, ends, tau, top.lam_final, sigma, lam_guess)

        finite = backend.data_total((~all_finite((u_final, swept.lam_initial))).astype(jnp.int32)) == 0
        result = jnp.where(finite, Result.CYCLES_USED_UP.value, Result.NOT_FINITE.value).astype(jnp.int32)
        warm = (swept.tau, swept.sigma, None if guess is None else ends, swept.lam_ends)
        found = swept.gradients
        norms = swept.residual_norm, swept.adjoint_residual_norm
        return Found(top, found.slots.theta, swept.lam_initial, found.cost, *norms, result, warm)


def _step_size_per_layer(network: Network, levels: tuple[Level, ...], u0: PyTree) -> Network:
    """Incomplete intervals have a shorter coarse step; where there are any, one scalar h will not do."""
    if all(level.steps % level.factor == 0 for level in levels[:-1]):
        return network
    h = network.equation.h if network.equation.h is not None else network.shared.h
    per_layer = jnp.full((network.layers,), h, real_dtype(u0))
    return replace(
        network,
        equation=replace(network.equation, h=None),
        slots=network.slots._replace(h=per_layer),
        shared=network.shared._replace(h=None),
    )


class Swept(NamedTuple):
    """What the fused sweep leaves."""

    tau: PyTree
    sigma: PyTree
    lam_ends: PyTree
    lam_initial: PyTree
    gradients: Gradients
    residual_norm: jax.Array
    adjoint_residual_norm: jax.Array


def _coarse_problem(grids: Grids, solver: MGRIT, guess: PyTree, rhs: PyTree, initial: PyTree) -> PyTree:
    """Solve the coarse problem for the finest level's C-points: exactly with two levels, else by cycles."""
    if len(grids) == 2:
        return coarse_solve(grids, 1, solver, guess, rhs, initial)

    def one(ends: PyTree, _: None) -> tuple[PyTree, None]:
        return coarse_solve(grids, 1, solver, ends, rhs, initial), None

    return jax.lax.scan(one, guess, None, length=solver.cycles)[0]


@cached
def _predict_program(
    equation: Equation, levels: tuple[Level, ...], solver: MGRIT, backend: Backend
) -> Callable[..., tuple[PyTree, PyTree]]:
    level = levels[0]

    def body(slots: PyTree, u0: PyTree, shared: PyTree, tau: PyTree, guess: PyTree) -> tuple[PyTree, PyTree]:
        batch = sweep_batch(solver, u0, backend.platform, level.share)
        grids = state_grids(equation, slots, shared, levels, solver, backend, batch)
        ends = _coarse_problem(grids, solver, guess, tau, u0)
        device, local = divmod(level.last_interval, level.share)
        return ends, broadcast(backend, jax.tree.map(lambda x: x[local], ends), device)

    return backend.lift(body, (SHARDED, STATE, REPLICATED, SHARDED_STATES, SHARDED_STATES), (SHARDED_STATES, STATE))


@cached
def _sweep_program(
    equation: Equation, levels: tuple[Level, ...], solver: MGRIT, backend: Backend, state_norm: Any
) -> Callable[..., Swept]:
    level = levels[0]

    def body(
        slots: PyTree,
        u0: PyTree,
        shared: PyTree,
        ends: PyTree,
        tau: PyTree,
        lam_final: PyTree,
        sigma: PyTree,
        lam_guess: PyTree,
    ) -> Swept:
        batch = sweep_batch(solver, u0, backend.platform, level.share)
        forward = state_grids(equation, slots, shared, levels, solver, backend, batch)
        lin = Linearisation(forward[0].starts(ends, u0))
        grids = adjoint_grids(equation, forward, shared, lin)
        lam_ends = _coarse_problem(grids, solver, lam_guess, sigma, lam_final)
        starts = grids[0].starts(lam_ends, lam_final)
        arrived, lam_arrived, found = vjp_sweep(equation, grids[0], shared, 0, starts, False)
        norms = [
            residual_norm(grids[0], a, b, norm or euclidean_norm).astype(real_dtype(u0))
            for a, b, norm in ((arrived, ends, state_norm), (lam_arrived, lam_ends, solver.norm))
        ]
        total = backend.all_sum((found.shared, found.cost))
        lam_initial = broadcast(backend, jax.tree.map(lambda x: x[0], lam_arrived), 0)
        return Swept(
            add(tau, subtract(arrived, ends)),
            add(sigma, subtract(lam_arrived, lam_ends)),
            None if lam_guess is None else lam_ends,
            lam_initial,
            backend.data_sum(Gradients(found.slots, *total)),
            *norms,
        )

    states = SHARDED_STATES
    in_specs = (SHARDED, STATE, REPLICATED, states, states, STATE, states, states)
    out_specs = Swept(states, states, states, STATE, GRADIENT_SPECS, REPLICATED, REPLICATED)
    return backend.lift(body, in_specs, out_specs)


Schedule = CyclesThenGradient | PredictThenSweep
