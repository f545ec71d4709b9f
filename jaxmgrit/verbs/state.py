"""The programs of a state: solved, its points and its layers' outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from jaxmgrit._programs import cached
from jaxmgrit._pytree import repeat, unfold, where
from jaxmgrit.backend.base import SHARDED, SHARDED_STATES, Backend
from jaxmgrit.solution import STATE_SPECS, CPoints, Solution, check_guess, state_data
from jaxmgrit.solvers.base import OUTCOME_SPECS, Outcome, Solver
from jaxmgrit.solvers.mgrit.grids import finest_grid, state_grids, sweep_batch
from jaxmgrit.solvers.sequential import SEQUENTIAL
from jaxmgrit.system.grid import points

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Layers, Mask, State
    from jaxmgrit.system.network import Network
    from jaxmgrit.system.partition import Level
    from jaxmgrit.system.step import Equation

PyTree = Any


def solve_network(network: Network, u0: State, solver: Solver, guess: CPoints | None, backend: Backend) -> Solution:
    """`solve` for a checked network and states of the backend, see `Backend.split_batch`."""
    levels = solver.hierarchy(network.layers, backend.size)
    equation = network.with_coarse_step(solver)
    check_guess(guess, u0, levels[0], backend)

    program = _solve_program(equation, levels, solver, backend)
    outcome = program(network.on(levels[0], backend), u0, network.shared, None if guess is None else guess.ends)
    return Solution(
        outcome.final,
        CPoints(u0, outcome.ends),
        outcome.norms,
        outcome.cycles,
        outcome.result,
        outcome.scale,
        levels[0],
        solver.has_tolerance,
    )


def propagate_exactly(network: Network, u0: State, level: Level, backend: Backend) -> PyTree:
    """u^N one layer after another, the layers staying in a given partition."""
    program = _solve_program(network.equation, (level,), SEQUENTIAL, backend)
    return program(network.on(level, backend), u0, network.shared, None).final


@cached
def _solve_program(
    equation: Equation, levels: tuple[Level, ...], solver: Solver, backend: Backend
) -> Callable[..., Outcome]:
    def body(slots: Layers, u0: State, shared: PyTree, ends: State) -> Outcome:
        batch = sweep_batch(solver, u0, backend.platform, levels[0].share)
        grids = state_grids(equation, slots, shared, levels, solver, backend, batch)
        return solver.run(grids, repeat(u0, levels[0].share) if ends is None else ends, u0)

    return backend.lift(body, STATE_SPECS, OUTCOME_SPECS)


@cached
def points_program(equation: Equation, level: Level, backend: Backend) -> Callable[..., PyTree]:
    """The state after each layer from data of `state_data`, slots of the partition as leading axis."""

    def body(slots: Layers, u0: State, shared: PyTree, ends: State) -> PyTree:
        return points(finest_grid(equation, slots, shared, level, u0, backend), ends, None, u0)

    return backend.lift(body, STATE_SPECS, SHARDED_STATES)


def outputs_network(network: Network, sol: Solution, backend: Backend) -> PyTree:
    """The outputs of all layers of a checked network, leading axis N, by one sweep from the C-points of a solution."""
    if not network.equation.outputs:
        return None
    ys = backend.gather(_outputs_program(network.equation, sol.level, backend)(*state_data(network, sol, backend)))
    return jax.tree.map(lambda y: y[: network.layers], ys)


@cached
def _outputs_program(equation: Equation, level: Level, backend: Backend) -> Callable[..., PyTree]:
    def body(slots: Layers, u0: State, shared: PyTree, ends: State) -> PyTree:
        grid = finest_grid(equation, slots, shared, level, u0, backend)

        def interval(start: State, block: Layers, mask: Mask) -> PyTree:
            def one(u: State, inputs: Arrays) -> tuple[PyTree, PyTree]:
                slot, inside = inputs
                after, y = equation.advance_with_output(slot, u, shared)
                # The caller cuts off the outputs of padding; the state must pass through it.
                return where(inside, after, u), y

            return jax.lax.scan(one, start, (block, mask))[1]

        return unfold(grid.sweep(interval, ends, u0, grid.blocks, grid.mask))

    return backend.lift(body, STATE_SPECS, SHARDED)
