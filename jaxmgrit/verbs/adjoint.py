"""The programs of an adjoint: solved, its points, and the gradients of its layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jaxmgrit._programs import cached
from jaxmgrit._pytree import repeat
from jaxmgrit.backend.base import REPLICATED, SHARDED, SHARDED_STATES, STATE, Backend
from jaxmgrit.solution import STATE_SPECS, AdjointSolution, CPoints, Solution, check_guess, state_data
from jaxmgrit.solvers.base import OUTCOME_SPECS, Outcome, Solver
from jaxmgrit.solvers.mgrit.grids import adjoint_grids, finest_grid, state_grids, sweep_batch
from jaxmgrit.solvers.sequential import SEQUENTIAL, sequential_outcome
from jaxmgrit.system.fused_sweep import Gradients, linearised, record_side_by_side, sequential_gradient, vjp_sweep
from jaxmgrit.system.grid import Grid, points
from jaxmgrit.system.linearise import Linearisation, linearise
from jaxmgrit.system.partition import Level, relayout

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, State
    from jaxmgrit.system.network import Network
    from jaxmgrit.system.step import Equation

PyTree = Any

GRADIENT_SPECS = Gradients(SHARDED, REPLICATED, REPLICATED)


def _grids(
    equation: Equation, state: Level, levels: tuple[Level, ...], solver: Solver, backend: Backend, data: Arrays
) -> tuple[tuple[Grid, ...], Linearisation]:
    """The adjoint's grids on this device, from the state's slots and C-points."""
    slots, u0, shared, ends = data
    grid = finest_grid(equation, slots, shared, state, u0, backend)
    # The C-points belong to the state's partition: it is linearised there, and then the slots move to the adjoint's.
    linearisation = linearise(grid, ends, u0, levels[0])
    slots = relayout(slots, state, levels[0], backend)
    batch = sweep_batch(solver, u0, backend.platform, levels[0].share)
    forward = state_grids(equation, slots, shared, levels, solver, backend, batch)
    return adjoint_grids(equation, forward, shared, linearisation, solver), linearisation


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
    # Padding in front: adjoint C-points are n = N - j m, counted from the last layer.
    levels = solver.hierarchy(network.layers, backend.size, front=True)
    check_guess(guess, lam_final, levels[0], backend)
    equation = network.with_coarse_step(solver)
    program = _adjoint_program(equation, sol.level, levels, solver, backend, gradients, step_sizes)
    outcome, swept = program(state_data(network, sol, backend), lam_final, None if guess is None else guess.ends)
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
    return adj, swept


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
        # On one device the run back takes the gradients along, so that every layer is linearised once.
        if gradients and solver.is_sequential(levels) and backend.size == 1:
            ends, swept = sequential_gradient(equation, grids[0], shared, lin.offset, lam_final, step_sizes)
            return sequential_outcome(grids[0], ends, lam_final), _collect(swept, levels[0], state, backend)
        guess = repeat(lam_final, levels[0].share) if ends is None else ends
        if not gradients:
            return solver.run(grids, guess, lam_final), None

        recorded = None
        # Linearised once for solve and gradients, where the tapes of all layers are not too large.
        if (tangents := solver.tangents(lam_final)) is not None:
            recorded = record_side_by_side(equation, grids[0], shared, lin.offset, step_sizes, tangents)
        if recorded is not None:
            grids = (replace(grids[0], linearised=linearised(recorded, levels[0].share)),)

        def sweep(ends: State) -> tuple[PyTree, Gradients]:
            swept, arrived, _ = vjp_sweep(
                equation,
                grids[0],
                shared,
                lin.offset,
                ends,
                lam_final,
                step_sizes,
                # What intervals arrive at, for solvers whose last residual is that of this sweep.
                lambda u, lam, _: (lam, None),
                tapes=recorded,
            )
            return arrived, swept

        outcome, swept = solver.run_and_sweep(grids, guess, lam_final, sweep)
        return outcome, _collect(swept, levels[0], state, backend)

    specs = (OUTCOME_SPECS, GRADIENT_SPECS if gradients else None)
    return backend.lift(body, (STATE_SPECS, STATE, SHARDED_STATES), specs)


def _collect(swept: Gradients, source: Level, target: Level, backend: Backend) -> Gradients:
    """Gradients in the state's partition, and what is summed over all layers; all summed over the whole batch."""
    slots = relayout(swept.slots, source, target, backend)
    return backend.data_sum(Gradients(slots, *backend.all_sum((swept.shared, swept.cost))))


@cached
def gradient_program(equation: Equation, state: Level, level: Level, backend: Backend) -> Callable[..., Gradients]:
    """Gradients of all layers from data of a state and C-points of an adjoint, slots of the state's partition."""

    def body(data: Arrays, lam_final: State, ends: State) -> Gradients:
        (grid,), lin = _grids(equation, state, (level,), SEQUENTIAL, backend, data)
        swept, _, _ = vjp_sweep(equation, grid, data[2], lin.offset, ends, lam_final, False)
        return _collect(swept, level, state, backend)

    return backend.lift(body, (STATE_SPECS, STATE, SHARDED_STATES), GRADIENT_SPECS)


@cached
def adjoint_points_program(equation: Equation, state: Level, level: Level, backend: Backend) -> Callable[..., PyTree]:
    """The adjoint before each layer, slots of the state's partition as leading axis."""

    def body(data: Arrays, lam_final: State, ends: State) -> PyTree:
        (grid,), _ = _grids(equation, state, (level,), SEQUENTIAL, backend, data)
        return relayout(points(grid, ends, None, lam_final), level, state, backend)

    return backend.lift(body, (STATE_SPECS, STATE, SHARDED_STATES), SHARDED_STATES)
