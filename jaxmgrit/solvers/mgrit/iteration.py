"""Cycles until done, and the sequential run; the same for the state and the adjoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import all_finite, euclidean_norm, real_dtype, repeat, where
from jaxmgrit.backend.base import Backend, broadcast
from jaxmgrit.solution import result_code
from jaxmgrit.solvers.mgrit.cycle import Grids, cycle, skip_first_down
from jaxmgrit.solvers.mgrit.fas import Norm, c_norm
from jaxmgrit.solvers.mgrit.options import MGRIT, Solver
from jaxmgrit.solvers.mgrit.relaxation import Grid, run_interval

PyTree = Any

# Residuals up to so many units in the last place of the C-points' norm are rounding: what replacing C-points leaves.
ROUNDING = 1.0


class Outcome(NamedTuple):
    """What a run leaves: C-points, the value at its end, and how it went."""

    ends: PyTree
    final: PyTree
    norms: jax.Array
    cycles: jax.Array
    result: jax.Array


def run(grids: Grids, solver: Solver, guess: PyTree, initial: PyTree) -> Outcome:
    """Solve from a guess of C-points: by cycles, or one interval after another where there is only one level."""
    if len(grids) == 1 or not isinstance(solver, MGRIT):
        return sequential_outcome(grids[0], sequential(grids[0], initial), initial)
    dtype = real_dtype(initial)

    def norm(state: PyTree) -> jax.Array:
        return (solver.norm or euclidean_norm)(state).astype(dtype)

    # Intervals of padding must hold values the layers can bear: they are computed, though not used.
    valid = _has_steps(grids[0])
    ends = where(valid, guess, repeat(initial, grids[0].level.share))
    loop = _until_tolerance if solver.has_tolerance else _all_cycles
    ends, norms, cycles, converged = loop(grids, solver, ends, initial, norm)
    if solver.sequential_fallback:
        ends, converged = _unless(converged, ends, lambda: sequential(grids[0], initial))
    final = end_value(grids[0], ends, initial)
    first = norms[min(int(solver.skip_first_down), solver.cycles - 1)]
    last = norms[jnp.maximum(cycles - 1, 0)]
    scale = c_norm(grids[0], ends, norm)
    skipped_all = solver.skip_first_down & (cycles == 1)
    finite = _finite(final, grids[0].backend) & (jnp.isfinite(last) | skipped_all | converged)
    code = result_code(finite, converged, last > jnp.maximum(10 * first, float(jnp.finfo(dtype).eps) ** 0.5 * scale))
    return Outcome(ends, final, norms, cycles, code)


def _unless(converged: jax.Array, ends: PyTree, rescue: Callable[[], PyTree]) -> tuple[PyTree, jax.Array]:
    # A loop of at most one pass rather than a `cond`, which under `vmap` would always run both branches.
    def once(carry: PyTree) -> tuple[PyTree, jax.Array]:
        return rescue(), jnp.ones_like(carry[1])

    return jax.lax.while_loop(lambda carry: ~carry[1], once, (ends, converged))


def sequential_outcome(grid: Grid, ends: PyTree, initial: PyTree) -> Outcome:
    """What a sequential run leaves."""
    final = _at_last_interval(grid, lambda local: jax.tree.map(lambda x: x[local], ends))
    code = result_code(_finite(final, grid.backend), True, False)
    return Outcome(ends, final, jnp.zeros((0,), real_dtype(initial)), jnp.zeros((), jnp.int32), code)


def _finite(state: PyTree, backend: Backend) -> jax.Array:
    """Whether every entry of a state is finite, in all parts of the batch."""
    return backend.data_sum((~all_finite(state)).astype(jnp.int32)) == 0


def _has_steps(grid: Grid) -> Any:
    mask = grid.mask
    return None if mask is None else jnp.any(mask, axis=1)


def _first(grids: Grids, solver: MGRIT, ends: PyTree, initial: PyTree) -> tuple[PyTree, int]:
    if not solver.skip_first_down:
        return ends, 0
    return skip_first_down(grids, 1, solver, initial), 1


def _all_cycles(grids: Grids, solver: MGRIT, ends: PyTree, initial: PyTree, norm: Norm) -> tuple[Any, ...]:
    ends, done = _first(grids, solver, ends, initial)

    def one(ends: PyTree, _: None) -> tuple[PyTree, jax.Array]:
        return cycle(grids, solver, ends, initial, norm)

    ends, norms = jax.lax.scan(one, ends, None, length=solver.cycles - done)
    norms = jnp.concatenate([jnp.full((done,), jnp.nan, norms.dtype), norms])
    return ends, norms, jnp.asarray(solver.cycles, jnp.int32), jnp.asarray(False)


def _until_tolerance(grids: Grids, solver: MGRIT, ends: PyTree, initial: PyTree, norm: Norm) -> tuple[Any, ...]:
    ends, done = _first(grids, solver, ends, initial)
    dtype = real_dtype(initial)
    eps = float(jnp.finfo(dtype).eps)

    def unfinished(carry: tuple[Any, ...]) -> jax.Array:
        _, _, k, stop, _, _ = carry
        return (k < solver.cycles) & ~stop

    def one(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        ends, norms, k, _, first, _ = carry
        scale = c_norm(grids[0], ends, norm)
        ends, r = cycle(grids, solver, ends, initial, norm)
        first = jnp.where(k == done, r, first)
        met = r <= ROUNDING * eps * scale
        if solver.atol is not None:
            met |= r <= solver.atol
        if solver.rtol is not None:
            met |= r <= solver.rtol * first
        hopeless = ~jnp.isfinite(r) | (r > 1e6 * jnp.maximum(first, scale))
        return ends, norms.at[k].set(r), k + 1, met | hopeless, first, met

    no = jnp.asarray(False)
    start = (
        ends,
        jnp.full((solver.cycles,), jnp.nan, dtype),
        jnp.asarray(done, jnp.int32),
        no,
        jnp.zeros((), dtype),
        no,
    )
    ends, norms, cycles, _, _, met = jax.lax.while_loop(unfinished, one, start)
    return ends, norms, cycles, met


def sequential(grid: Grid, initial: PyTree) -> PyTree:
    """One interval after another: exact values at the intervals' ends.

    Over several devices each runs its own chain of intervals as many times as there are devices, handing the end to its
    neighbour: the k-th run is right on the first k devices.
    """

    def interval(value: PyTree, args: PyTree) -> tuple[PyTree, PyTree]:
        block, mask = args
        value = run_interval(grid, value, block, mask, None)[0]
        return value, value

    def chain(start: PyTree) -> tuple[PyTree, PyTree]:
        return jax.lax.scan(interval, start, (grid.blocks, grid.mask), reverse=grid.backward)

    if grid.backend.size == 1:
        return chain(initial)[1]

    def relay(carry: PyTree, _: None) -> tuple[PyTree, None]:
        last, ends = chain(carry[0])
        handed = grid.backend.shift(jax.tree.map(lambda x: x[None], last), -1 if grid.backward else 1, initial)
        return (jax.tree.map(lambda x: x[0], handed), ends), None

    start = (initial, repeat(initial, grid.level.share))
    return jax.lax.scan(relay, start, None, length=grid.backend.size)[0][1]


def end_value(grid: Grid, ends: PyTree, initial: PyTree) -> PyTree:
    """The value at the end of the run, on every device: the last C-point, or F-relaxation of the trailing F-points."""

    def value(local: int) -> PyTree:
        if grid.level.trailing == 0:
            return jax.tree.map(lambda x: x[local], ends)
        data = (grid.starts(ends, initial), grid.blocks, grid.mask)
        start, block, mask = jax.tree.map(lambda x: x[local], data)
        return run_interval(grid, start, block, mask, None)[0]

    return _at_last_interval(grid, value)


def _at_last_interval(grid: Grid, value: Callable[[int], PyTree]) -> PyTree:
    """The value of the interval in which the run ends, given its position on its device, on every device."""
    level = grid.level
    device, local = divmod(level.first_interval if grid.backward else level.last_interval, level.share)
    return broadcast(grid.backend, value(local), device)
