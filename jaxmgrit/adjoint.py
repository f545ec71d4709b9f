"""The adjoint by the same solver on the reversed grid, and the layers' gradients from state and adjoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmgrit.backend.base import REPLICATED, SHARDED, Backend
from jaxmgrit.backend.local import Local
from jaxmgrit.checks import check_like, check_state
from jaxmgrit.equation import Equation, Shared
from jaxmgrit.grids import AdjointBlock, Linearisation, adjoint_grids, interval_states, sweep_batch
from jaxmgrit.hierarchy import Level, build_levels, lay_out, relayout
from jaxmgrit.iteration import Outcome, run, sequential_outcome
from jaxmgrit.network import Network, make_network
from jaxmgrit.options import MGRIT, Sequential, Solver
from jaxmgrit.pytree import add, fold, merge, repeat, split, unfold, where, zero_cotangent
from jaxmgrit.relaxation import Grid, by_intervals, points, run_interval
from jaxmgrit.solution import AdjointSolution, CPoints, Solution
from jaxmgrit.solve import (
    GUESS_REMEDY,
    OUTCOME_SPECS,
    PROGRAMS,
    STATE_SPECS,
    check_partition,
    finest_grid,
    state_data,
)

PyTree = Any


class Gradients(NamedTuple):
    """Cotangents of all layers and what they share; the running cost's sum comes along."""

    slots: PyTree
    shared: PyTree
    cost: jax.Array


def linearise(state: Grid, ends: PyTree, u0: PyTree, target: Level) -> Linearisation:
    """The fine states at which the adjoint of partition `target` is linearised, from the state's C-points.

    The adjoint's intervals end where the state's do only if the coarsening factor divides N. Else each begins at an F-point
    and has a C-point inside, where the recomputation goes on from the C-point's value.
    """
    level, backend = state.level, state.backend
    if (level.slots, level.factor, level.devices) != (target.slots, target.factor, target.devices):
        before = _before_slots(state, ends, u0)
        states = fold(relayout(before, level, target, backend), target.factor)
        return Linearisation(jax.tree.map(lambda x: x[:, 0], states), states=states)
    starts = state.starts(ends, u0)
    intervals, within = divmod(target.first - level.first, level.factor)

    def moved(values: PyTree, by: int) -> PyTree:
        return values if by == 0 else backend.shift(values, by, None)

    if within == 0:
        return Linearisation(moved(starts, intervals))
    # `within` slots of padding in front of layer 0, so intervals begin at the state's F-points `offset`.
    offset = level.factor - within
    inner = _advance_by(state, starts, offset)
    return Linearisation(moved(inner, intervals + 1), moved(starts, intervals), within)


def _before_slots(state: Grid, ends: PyTree, u0: PyTree) -> PyTree:
    after = points(state, ends, None, u0)
    return state.backend.shift(after, 1, u0)


def _advance_by(state: Grid, starts: PyTree, count: int) -> PyTree:
    """F-relaxation up to the F-point `count` of every interval."""

    def sweep(args: PyTree) -> PyTree:
        return run_interval(state, *args, rhs=None)[0]

    data = jax.tree.map(lambda x: x[:, :count], (state.blocks, state.mask))
    return by_intervals(sweep, (starts, *data), state.level.share, state.batch)


def vjp_sweep(
    equation: Equation, grid: Grid, shared: Shared, offset: int, lam: PyTree, step_sizes: bool
) -> tuple[PyTree, PyTree, Gradients]:
    """State, adjoint and gradient of all intervals in one pass: the fused sweep.

    Args:
        equation: the state's.
        grid: the adjoint's finest grid.
        shared: what the layers share.
        offset: where inside the intervals the state is reset to a C-point.
        lam: adjoint at the right end of each interval, leaves (share, ...).
        step_sizes: whether h (and what the step closes over) is to be differentiated too.

    Returns:
        What state and adjoint arrive at, leaves (share, ...), and the gradients of this device's layers, leaves
        (share * factor, ...).
    """

    def one(args: tuple[PyTree, AdjointBlock]) -> tuple[PyTree, PyTree, PyTree]:
        lam, block = args
        return interval_gradient(equation, shared, block, offset, lam, step_sizes)

    arrived, lam, gradients = by_intervals(one, (lam, grid.blocks), grid.level.share, grid.batch)
    slots, rest = gradients.slots, (gradients.shared, gradients.cost)
    total = jax.tree.map(lambda x: jnp.sum(x, axis=0), rest)
    return arrived, lam, Gradients(unfold(slots), *total)


def interval_gradient(
    equation: Equation, shared: Shared, block: AdjointBlock, offset: int, lam: PyTree, step_sizes: bool
) -> tuple[PyTree, PyTree, Gradients]:
    """The fused sweep of one interval, from the state at its start and the adjoint at its end."""
    if block.states is not None:
        states, arrived = block.states, None
    else:
        states, arrived = interval_states(equation, shared, block, offset)

    def one(carry: PyTree, inputs: PyTree) -> tuple[PyTree, PyTree]:
        lam, total = carry
        slot, inside, u = inputs
        vjp = equation.gradient(slot, u, shared, lam, step_sizes)
        found = (vjp.slot, vjp.shared, vjp.cost)
        d_slot, d_shared, cost = where(inside, found, jax.tree.map(jnp.zeros_like, found))
        return (where(inside, vjp.u, lam), add(total, d_shared)), (d_slot, cost)

    start = (lam, zero_shared(shared, step_sizes))
    (lam, total), (d_slots, costs) = jax.lax.scan(one, start, (block.slots, block.mask, states), reverse=True)
    return arrived, lam, Gradients(d_slots, total, jnp.sum(costs))


def zero_shared(shared: Shared, step_sizes: bool) -> Shared:
    """Where the cotangent of what is shared starts from."""
    return jax.tree.map(jnp.zeros_like, shared) if step_sizes else Shared()


def sequential_gradient(
    equation: Equation, grid: Grid, shared: Shared, offset: int, lam: PyTree, step_sizes: bool
) -> tuple[PyTree, Gradients]:
    """Adjoint and gradient in one run through the intervals of one device, one after another.

    Returns:
        The adjoint at the left end of every interval, and the gradients.
    """

    def one(carry: PyTree, block: AdjointBlock) -> tuple[PyTree, PyTree]:
        lam, total = carry
        _, lam, gradients = interval_gradient(equation, shared, block, offset, lam, step_sizes)
        return (lam, add(total, gradients.shared)), (lam, gradients.slots, gradients.cost)

    start = (lam, zero_shared(shared, step_sizes))
    (_, total), (ends, slots, costs) = jax.lax.scan(one, start, grid.blocks, reverse=True)
    return ends, Gradients(unfold(slots), total, jnp.sum(costs))


def _grids(
    equation: Equation, state: Level, levels: tuple[Level, ...], solver: Solver, backend: Backend, data: PyTree
) -> tuple[tuple[Grid, ...], Linearisation]:
    """The adjoint's grids on this device, from the state's slots and C-points."""
    slots, u0, shared, ends = data
    grid = finest_grid(equation, slots, shared, state, u0, backend)
    linearisation = linearise(grid, ends, u0, levels[0])
    slots = relayout(slots, state, levels[0], backend)
    batch = sweep_batch(solver, u0, backend.platform, levels[0].share)
    return adjoint_grids(equation, slots, shared, levels, solver, backend, batch, linearisation), linearisation


GRADIENT_SPECS = Gradients(SHARDED, REPLICATED, REPLICATED)


def adjoint_network(
    network: Network,
    sol: Solution,
    lam_final: PyTree,
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
    levels = build_levels(network.layers, solver, backend.size, front=True)
    if guess is not None:
        expected = jax.eval_shape(lambda: CPoints(lam_final, repeat(lam_final, levels[0].intervals)))
        check_like(guess, expected, "guess", GUESS_REMEDY)

    equation = network.with_coarse_step(solver)
    program = _adjoint_program(equation, sol.level, levels, solver, backend, gradients, step_sizes)
    outcome, found = program(state_data(network, sol, backend), lam_final, None if guess is None else guess.ends)
    tolerance = isinstance(solver, MGRIT) and solver.has_tolerance
    points = CPoints(lam_final, outcome.ends)
    adj = AdjointSolution(outcome.final, points, outcome.norms, outcome.cycles, outcome.result, levels[0], tolerance)
    return adj, found


@lru_cache(maxsize=PROGRAMS)
def _adjoint_program(
    equation: Equation,
    state: Level,
    levels: tuple[Level, ...],
    solver: Solver,
    backend: Backend,
    gradients: bool,
    step_sizes: bool,
) -> Callable[..., tuple[Outcome, Gradients | None]]:
    def body(data: PyTree, lam_final: PyTree, ends: PyTree) -> tuple[Outcome, Gradients | None]:
        grids, lin = _grids(equation, state, levels, solver, backend, data)
        shared = data[2]
        if gradients and len(levels) == 1 and backend.size == 1:
            ends, found = sequential_gradient(equation, grids[0], shared, lin.offset, lam_final, step_sizes)
            return sequential_outcome(grids[0], ends, lam_final), _collect(found, levels[0], state, backend)
        outcome = run(grids, solver, repeat(lam_final, levels[0].share) if ends is None else ends, lam_final)
        if not gradients:
            return outcome, None
        lam = grids[0].starts(outcome.ends, lam_final)
        _, _, found = vjp_sweep(equation, grids[0], shared, lin.offset, lam, step_sizes)
        return outcome, _collect(found, levels[0], state, backend)

    specs = (OUTCOME_SPECS, GRADIENT_SPECS if gradients else None)
    return backend.lift(body, (STATE_SPECS, REPLICATED, SHARDED), specs)


def _collect(found: Gradients, source: Level, target: Level, backend: Backend) -> Gradients:
    """Gradients in the state's partition, and what is summed over all layers."""
    slots = relayout(found.slots, source, target, backend)
    return Gradients(slots, *backend.all_sum((found.shared, found.cost)))


def adjoint_solve(
    step: Callable[..., PyTree],
    theta: PyTree,
    sol: Solution,
    lam_final: PyTree,
    *,
    h: Any,
    solver: Solver | None = None,
    guess: CPoints | None = None,
    running_cost: Callable[..., Any] | None = None,
    backend: Backend | None = None,
) -> AdjointSolution:
    """Propagate lam^N backwards: lam^n = (d step / d u)^T lam^{n+1} + d running_cost / d u^n.

    The same solver on the reversed grid: C-points are counted from the last layer. The steps are linearised at the fine
    states of `sol`, recomputed from its C-points within each sweep.

    Args:
        step: as in `solve`.
        theta: as in `solve`.
        sol: the state, from `solve`; one solved by `Sequential()` or with another coarsening factor will do too, but the
            states of all N layers are then kept while the adjoint is solved, unless its segments are those of `solver`.
        lam_final: lam^N = d loss / d u^N, like the state.
        h: as in `solve`.
        solver: `MGRIT(...)` (the default) or `Sequential()`.
        guess: C-points of an earlier adjoint solve with the same partition; None: lam^N everywhere.
        running_cost: (theta, u, h) -> scalar, or None.
        backend: the one `sol` was computed with.

    Returns:
        An `AdjointSolution`.

    Raises:
        TypeError, ValueError: arguments that do not fit together; nothing has been compiled by then.

    Source: Guenther et al. 2020 (arXiv 1812.04352), section 3.3.
    """
    solver = MGRIT() if solver is None else solver
    backend = Local() if backend is None else backend
    network = make_network(step, theta, sol.c_points.initial, h, solver, running_cost=running_cost)
    check_partition(sol.level, network.layers, backend, "sol")
    lam_final = check_state(lam_final, "lam_final")
    check_like(lam_final, sol.u_final, "lam_final", "It is the loss's derivative with respect to the final state.")
    return adjoint_network(network, sol, lam_final, solver, guess, backend)[0]


def layer_gradients(
    step: Callable[..., PyTree],
    theta: PyTree,
    sol: Solution,
    adj: AdjointSolution,
    *,
    h: Any,
    running_cost: Callable[..., Any] | None = None,
    backend: Backend | None = None,
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
    backend = Local() if backend is None else backend
    network = make_network(step, theta, sol.c_points.initial, h, running_cost=running_cost)
    check_partition(sol.level, network.layers, backend, "sol")
    check_partition(adj.level, network.layers, backend, "adj")

    program = _gradient_program(network.equation, sol.level, adj.level, backend)
    found = program(state_data(network, sol, backend), adj.c_points.initial, adj.c_points.ends)
    return like_theta(found.slots.theta, theta, network.layers, backend)


@lru_cache(maxsize=PROGRAMS)
def _gradient_program(equation: Equation, state: Level, level: Level, backend: Backend) -> Callable[..., Gradients]:
    def body(data: PyTree, lam_final: PyTree, ends: PyTree) -> Gradients:
        (grid,), lin = _grids(equation, state, (level,), Sequential(), backend, data)
        lam = grid.starts(ends, lam_final)
        _, _, found = vjp_sweep(equation, grid, data[2], lin.offset, lam, False)
        return _collect(found, level, state, backend)

    return backend.lift(body, (STATE_SPECS, REPLICATED, SHARDED), GRADIENT_SPECS)


def like_theta(d_theta: PyTree, theta: PyTree, layers: int, backend: Backend) -> PyTree:
    """Gradients of the differentiable leaves by slot to gradients of all leaves by layer."""
    whole = jax.tree.map(lambda x: x[:layers], backend.gather(d_theta))
    return merge(whole, jax.tree.map(zero_cotangent, split(theta)[1]))


def adjoint_trajectory(
    step: Callable[..., PyTree],
    theta: PyTree,
    sol: Solution,
    adj: AdjointSolution,
    *,
    h: Any,
    running_cost: Callable[..., Any] | None = None,
    backend: Backend | None = None,
) -> PyTree:
    """All adjoints lam^0 .. lam^N: the C-points of `adj`, and its F-points by F-relaxation.

    Arguments as in `layer_gradients`.

    Returns:
        The state's pytree with leading axis N + 1 on every leaf.
    """
    backend = Local() if backend is None else backend
    network = make_network(step, theta, sol.c_points.initial, h, running_cost=running_cost)
    check_partition(sol.level, network.layers, backend, "sol")
    check_partition(adj.level, network.layers, backend, "adj")

    program = _adjoint_points_program(network.equation, sol.level, adj.level, backend)
    before = program(state_data(network, sol, backend), adj.c_points.initial, adj.c_points.ends)
    return jax.tree.map(
        lambda rest, last: jnp.concatenate([rest[: network.layers], last[None]]),
        backend.gather(before),
        adj.c_points.initial,
    )


@lru_cache(maxsize=PROGRAMS)
def _adjoint_points_program(equation: Equation, state: Level, level: Level, backend: Backend) -> Callable[..., PyTree]:
    def body(data: PyTree, lam_final: PyTree, ends: PyTree) -> PyTree:
        (grid,), _ = _grids(equation, state, (level,), Sequential(), backend, data)
        return relayout(points(grid, ends, None, lam_final), level, state, backend)

    return backend.lift(body, (STATE_SPECS, REPLICATED, SHARDED), SHARDED)
