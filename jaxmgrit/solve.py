"""`solve`: the state through all layers, by cycles over the layer index or one layer after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxmgrit._checks import check_backend, check_like, check_state, check_type
from jaxmgrit._programs import cached
from jaxmgrit._pytree import repeat, unfold, where
from jaxmgrit._types import Arrays, Layers, Mask, State, StepSize
from jaxmgrit.backend.base import REPLICATED, SHARDED, SHARDED_STATES, STATE, Backend
from jaxmgrit.backend.local import LOCAL
from jaxmgrit.solution import CPoints, Solution
from jaxmgrit.solvers.base import Outcome, Solver
from jaxmgrit.solvers.mgrit.grids import state_grids, sweep_batch
from jaxmgrit.solvers.mgrit.solver import DEFAULT
from jaxmgrit.solvers.sequential import SEQUENTIAL
from jaxmgrit.system.grid import Grid, points
from jaxmgrit.system.network import Network, make_network
from jaxmgrit.system.partition import Level
from jaxmgrit.system.step import Equation

PyTree = Any


def solve(
    step: Callable[..., PyTree],
    theta: Layers,
    u0: State,
    *,
    h: StepSize,
    solver: Solver = DEFAULT,
    guess: CPoints | None = None,
    backend: Backend = LOCAL,
) -> Solution:
    """Propagate u^0 through N layers: u^{n+1} = step(theta^n, u^n, h).

    Choose this for the solution object: residual history, C-points to start the next solve from, a result code. For
    a differentiable drop-in of `lax.scan` see `propagate`.

    Args:
        step: Phi(theta, u, h) -> u_next, pure; theta is one layer's parameters.
        theta: parameters, every leaf with leading axis N.
        u0: state, a pytree of floating-point arrays.
        h: step size, a scalar or one per layer, shape (N,).
        solver: `MGRIT(...)` (the default), `Newton(...)` or `Sequential()`.
        guess: C-points of an earlier solve with the same partition of the layers; None: u^0 everywhere.
        backend: `Local()` (the default), `Mesh(...)`: where the layers live.

    Returns:
        A `Solution`. With a fixed number of cycles it can be differentiated like any JAX computation.

    Raises:
        TypeError, ValueError: arguments that do not fit together; nothing has been compiled by then.

    Source: Guenther et al. 2020 (arXiv 1812.04352), sections 3.1-3.2.
    """
    check_backend(backend)
    u0 = check_state(u0)
    u0 = backend.split_batch(u0)
    network = make_network(step, theta, u0, h, solver)
    sol = solve_network(network, u0, solver.fitted(network.layers, u0, backend), guess, backend)
    return replace(sol, u_final=backend.join_batch(sol.u_final))


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


STATE_SPECS = (SHARDED, STATE, REPLICATED, SHARDED_STATES)
OUTCOME_SPECS = Outcome(SHARDED_STATES, STATE, REPLICATED, REPLICATED, REPLICATED, REPLICATED)


def check_guess(guess: CPoints | None, initial: State, level: Level, backend: Backend) -> None:
    """Raise a ValueError unless a guess holds the C-points of this partition."""
    if guess is None:
        return
    expected = jax.eval_shape(lambda: CPoints(initial, repeat(initial, level.intervals // backend.blocks)))
    remedy = (
        "Give the c_points of a solve of the same network with the same coarsening factor and number of devices "
        "(or a jax.tree.map of them)."
    )
    check_like(guess, expected, "guess", remedy)


def trajectory(
    step: Callable[..., PyTree],
    theta: Layers,
    sol: Solution,
    *,
    h: StepSize,
    backend: Backend = LOCAL,
) -> PyTree:
    """All states u^0 .. u^N of a solution: its C-points, and its F-points by F-relaxation.

    Args:
        step: as in `solve`.
        theta: as in `solve`.
        sol: a solution of `solve`.
        h: as in `solve`.
        backend: the one the solution was made with.

    Returns:
        The state's pytree with leading axis N + 1 on every leaf.
    """
    check_solution(sol)
    network = make_network(step, theta, sol.c_points.initial, h)
    check_partition(sol.level, network.layers, backend, "sol")

    program = _points_program(network.equation, sol.level, backend)
    after = backend.gather(program(*state_data(network, sol, backend)))
    states = jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest[: network.layers]]), sol.c_points.initial, after
    )
    return backend.join_batch(states, axis=1)


@cached
def _points_program(equation: Equation, level: Level, backend: Backend) -> Callable[..., PyTree]:
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
                return where(inside, after, u), y

            return jax.lax.scan(one, start, (block, mask))[1]

        return unfold(grid.sweep(interval, ends, u0, grid.blocks, grid.mask))

    return backend.lift(body, STATE_SPECS, SHARDED)


def finest_grid(equation: Equation, slots: Layers, shared: PyTree, level: Level, u0: State, backend: Backend) -> Grid:
    """The state's finest grid alone, of a given partition."""
    batch = sweep_batch(SEQUENTIAL, u0, backend.platform, level.share)
    return state_grids(equation, slots, shared, (level,), SEQUENTIAL, backend, batch)[0]


def state_data(network: Network, sol: Solution, backend: Backend) -> tuple[PyTree, ...]:
    """What a program needs to know of a solved state: slots, u^0, what is shared, C-points (see STATE_SPECS)."""
    return network.on(sol.level, backend), sol.c_points.initial, network.shared, sol.c_points.ends


def check_solution(sol: Any) -> None:
    """Raise a TypeError unless `sol` is what `solve` returns."""
    check_type(sol, Solution, "sol", "give what jm.solve returned.")


def check_partition(level: Level, layers: int, backend: Backend, name: str) -> None:
    """Raise a ValueError unless a solution belongs to a network of so many layers on this backend."""
    check_backend(backend)
    if level.steps != layers:
        raise ValueError(
            f"{name} belongs to a network of {level.steps} layers, but theta has {layers}; solve again with this theta."
        )
    if level.devices != backend.size:
        raise ValueError(
            f"{name} was computed on {level.devices} devices, but backend has {backend.size}; pass the "
            "backend it was made with."
        )
