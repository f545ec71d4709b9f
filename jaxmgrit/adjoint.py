"""The adjoint by the same solver on the reversed grid, and the layers' gradients from state and adjoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxmgrit._checks import check_backend, check_like, check_state, check_type
from jaxmgrit._programs import cached
from jaxmgrit._pytree import merge, repeat, split, zero_cotangent
from jaxmgrit._types import Arrays, Layers, State, StepSize
from jaxmgrit.backend.base import REPLICATED, SHARDED, SHARDED_STATES, STATE, Backend
from jaxmgrit.backend.local import LOCAL
from jaxmgrit.solution import AdjointSolution, CPoints, Solution
from jaxmgrit.solve import (
    OUTCOME_SPECS,
    STATE_SPECS,
    check_guess,
    check_partition,
    check_solution,
    finest_grid,
    state_data,
)
from jaxmgrit.solvers.base import Outcome, Solver
from jaxmgrit.solvers.mgrit.grids import adjoint_grids, state_grids, sweep_batch
from jaxmgrit.solvers.mgrit.solver import DEFAULT
from jaxmgrit.solvers.sequential import SEQUENTIAL, sequential_outcome
from jaxmgrit.system.fused_sweep import Gradients, sequential_gradient, vjp_sweep
from jaxmgrit.system.grid import Grid, points
from jaxmgrit.system.linearise import Linearisation, linearise
from jaxmgrit.system.network import Network, make_network
from jaxmgrit.system.partition import Level, relayout
from jaxmgrit.system.step import Equation

PyTree = Any


def _grids(
    equation: Equation, state: Level, levels: tuple[Level, ...], solver: Solver, backend: Backend, data: Arrays
) -> tuple[tuple[Grid, ...], Linearisation]:
    """The adjoint's grids on this device, from the state's slots and C-points."""
    slots, u0, shared, ends = data
    grid = finest_grid(equation, slots, shared, state, u0, backend)
    linearisation = linearise(grid, ends, u0, levels[0])
    slots = relayout(slots, state, levels[0], backend)
    batch = sweep_batch(solver, u0, backend.platform, levels[0].share)
    forward = state_grids(equation, slots, shared, levels, solver, backend, batch)
    return adjoint_grids(equation, forward, shared, linearisation, solver), linearisation


GRADIENT_SPECS = Gradients(SHARDED, REPLICATED, REPLICATED)


def adjoint_network(
    network: Network,
    sol: Solution,
    lam_final: State,
    solver: Solver,
    guess: CPoints | None,
    backend: Backend,
    *,
    gradients: bool = False,
    step_sizes: bool = False,
) -> tuple[AdjointSolution, Gradients | None]:
    """`adjoint_solve` for a checked network, and on request `layer_gradients` in the same program.

    The gradients' slots keep the state's partition: leading axis slots, zero in the padding.
    """
    levels = solver.hierarchy(network.layers, backend.size, front=True)
    check_guess(guess, lam_final, levels[0], backend)
    equation = network.with_coarse_step(solver)
    program = _adjoint_program(equation, sol.level, levels, solver, backend, gradients, step_sizes)
    outcome, found = program(state_data(network, sol, backend), lam_final, None if guess is None else guess.ends)
    points = CPoints(lam_final, outcome.ends)
    adj = AdjointSolution(
        outcome.final,
        points,
        outcome.norms,
        outcome.cycles,
        outcome.result,
        outcome.scale,
        levels[0],
        solver.has_tolerance,
    )
    return adj, found


@cached
def _adjoint_program(
    equation: Equation,
    state: Level,
    levels: tuple[Level, ...],
    solver: Solver,
    backend: Backend,
    gradients: bool,
    step_sizes: bool,
) -> Callable[..., tuple[Outcome, Gradients | None]]:
    def body(data: Arrays, lam_final: State, ends: State) -> tuple[Outcome, Gradients | None]:
        grids, lin = _grids(equation, state, levels, solver, backend, data)
        shared = data[2]
        if gradients and solver.is_sequential(levels) and backend.size == 1:
            ends, found = sequential_gradient(equation, grids[0], shared, lin.offset, lam_final, step_sizes)
            return sequential_outcome(grids[0], ends, lam_final), _collect(found, levels[0], state, backend)
        guess = repeat(lam_final, levels[0].share) if ends is None else ends
        if not gradients:
            return solver.run(grids, guess, lam_final), None

        def sweep(ends: State) -> tuple[PyTree, Gradients]:
            found, arrived, _ = vjp_sweep(
                equation, grids[0], shared, lin.offset, ends, lam_final, step_sizes, lambda u, lam, _: (lam, None)
            )
            return arrived, found

        outcome, found = solver.run_and_sweep(grids, guess, lam_final, sweep)
        return outcome, _collect(found, levels[0], state, backend)

    specs = (OUTCOME_SPECS, GRADIENT_SPECS if gradients else None)
    return backend.lift(body, (STATE_SPECS, STATE, SHARDED_STATES), specs)


def _collect(found: Gradients, source: Level, target: Level, backend: Backend) -> Gradients:
    """Gradients in the state's partition, and what is summed over all layers; all summed over the whole batch."""
    slots = relayout(found.slots, source, target, backend)
    return backend.data_sum(Gradients(slots, *backend.all_sum((found.shared, found.cost))))


def adjoint_solve(
    step: Callable[..., PyTree],
    theta: Layers,
    sol: Solution,
    lam_final: State,
    *,
    h: StepSize,
    solver: Solver = DEFAULT,
    guess: CPoints | None = None,
    running_cost: Callable[..., Any] | None = None,
    backend: Backend = LOCAL,
) -> AdjointSolution:
    """Propagate lam^N backwards: lam^n = (d step / d u)^T lam^{n+1} + d running_cost / d u^n.

    The same solver on the reversed grid: C-points are counted from the last layer. The steps are linearised at the fine
    states of `sol`, recomputed from its C-points within each sweep.

    Args:
        step: as in `solve`.
        theta: as in `solve`.
        sol: the state, from `solve`; one solved by `Sequential()` or with another coarsening factor will do too, but
            the states of all N layers are then kept while the adjoint is solved, unless its segments are those of
            `solver`.
        lam_final: lam^N = d loss / d u^N, like the state.
        h: as in `solve`.
        solver: `MGRIT(...)` (the default), `Newton(...)` (one iteration is exact) or `Sequential()`.
        guess: C-points of an earlier adjoint solve with the same partition; None: lam^N everywhere.
        running_cost: (theta, u, h) -> scalar, or None.
        backend: the one `sol` was computed with.

    Returns:
        An `AdjointSolution`.

    Raises:
        TypeError, ValueError: arguments that do not fit together; nothing has been compiled by then.

    Source: Guenther et al. 2020 (arXiv 1812.04352), section 3.3.
    """
    check_solution(sol)
    check_backend(backend)
    network = make_network(
        step, theta, sol.c_points.initial, h, solver, running_cost=running_cost, parts=backend.data_size
    )
    check_partition(sol.level, network.layers, backend, "sol")
    lam_final = check_state(lam_final, "lam_final")
    check_like(lam_final, sol.u_final, "lam_final", "It is the loss's derivative with respect to the final state.")
    lam_final = backend.split_batch(lam_final)
    solver = solver.fitted(network.layers, lam_final, backend)
    adj, _ = adjoint_network(network, sol, lam_final, solver, guess, backend)
    return replace(adj, lam_initial=backend.join_batch(adj.lam_initial))


def layer_gradients(
    step: Callable[..., PyTree],
    theta: Layers,
    sol: Solution,
    adj: AdjointSolution,
    *,
    h: StepSize,
    running_cost: Callable[..., Any] | None = None,
    backend: Backend = LOCAL,
) -> PyTree:
    """Gradient with respect to the layers' parameters: (d step / d theta)^T lam^{n+1} + d running_cost / d theta^n.

    One sweep in which all layers are independent, at the values after the last correction.

    Args:
        step: as in `solve`.
        theta: as in `solve`.
        sol: the state.
        adj: the adjoint, from `adjoint_solve` with this `sol`.
        h: as in `solve`.
        running_cost: as in `adjoint_solve`.
        backend: the one `sol` and `adj` were computed with.

    Returns:
        The same pytree as theta. Integer and key leaves have zeros of dtype float0, as everywhere in JAX.

    Raises:
        TypeError, ValueError: arguments that do not fit together.
    """
    check_solution(sol)
    check_type(adj, AdjointSolution, "adj", "give what jm.adjoint_solve returned.")
    check_backend(backend)
    network = make_network(step, theta, sol.c_points.initial, h, running_cost=running_cost, parts=backend.data_size)
    check_partition(sol.level, network.layers, backend, "sol")
    check_partition(adj.level, network.layers, backend, "adj")

    program = _gradient_program(network.equation, sol.level, adj.level, backend)
    found = program(state_data(network, sol, backend), adj.c_points.initial, adj.c_points.ends)
    return like_theta(found.slots.theta, theta, network.layers, backend)


@cached
def _gradient_program(equation: Equation, state: Level, level: Level, backend: Backend) -> Callable[..., Gradients]:
    def body(data: Arrays, lam_final: State, ends: State) -> Gradients:
        (grid,), lin = _grids(equation, state, (level,), SEQUENTIAL, backend, data)
        found, _, _ = vjp_sweep(equation, grid, data[2], lin.offset, ends, lam_final, False)
        return _collect(found, level, state, backend)

    return backend.lift(body, (STATE_SPECS, STATE, SHARDED_STATES), GRADIENT_SPECS)


def like_theta(d_theta: Arrays, theta: Layers, layers: int, backend: Backend) -> PyTree:
    """Gradients of the differentiable leaves by slot to gradients of all leaves by layer."""
    whole = jax.tree.map(lambda x: x[:layers], backend.gather(d_theta))
    return merge(whole, jax.tree.map(zero_cotangent, split(theta)[1]))


def adjoint_trajectory(
    step: Callable[..., PyTree],
    theta: Layers,
    sol: Solution,
    adj: AdjointSolution,
    *,
    h: StepSize,
    running_cost: Callable[..., Any] | None = None,
    backend: Backend = LOCAL,
) -> PyTree:
    """All adjoints lam^0 .. lam^N: the C-points of `adj`, and its F-points by F-relaxation.

    Arguments as in `layer_gradients`.

    Returns:
        The state's pytree with leading axis N + 1 on every leaf.
    """
    check_solution(sol)
    check_type(adj, AdjointSolution, "adj", "give what jm.adjoint_solve returned.")
    check_backend(backend)
    network = make_network(step, theta, sol.c_points.initial, h, running_cost=running_cost, parts=backend.data_size)
    check_partition(sol.level, network.layers, backend, "sol")
    check_partition(adj.level, network.layers, backend, "adj")

    program = _adjoint_points_program(network.equation, sol.level, adj.level, backend)
    before = program(state_data(network, sol, backend), adj.c_points.initial, adj.c_points.ends)
    adjoints = jax.tree.map(
        lambda rest, last: jnp.concatenate([rest[: network.layers], last[None]]),
        backend.gather(before),
        adj.c_points.initial,
    )
    return backend.join_batch(adjoints, axis=1)


@cached
def _adjoint_points_program(equation: Equation, state: Level, level: Level, backend: Backend) -> Callable[..., PyTree]:
    def body(data: Arrays, lam_final: State, ends: State) -> PyTree:
        (grid,), _ = _grids(equation, state, (level,), SEQUENTIAL, backend, data)
        return relayout(points(grid, ends, None, lam_final), level, state, backend)

    return backend.lift(body, (STATE_SPECS, STATE, SHARDED_STATES), SHARDED_STATES)
