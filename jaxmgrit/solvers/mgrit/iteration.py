"""Cycles until done, and the sequential run; the same for the state and the adjoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import euclidean_norm, norm_dtype, real_dtype, repeat, subtract, vary, varying_axes, where
from jaxmgrit._scopes import at_most
from jaxmgrit.solvers.base import Outcome, at_last_interval, is_finite
from jaxmgrit.solvers.convergence import Gauge, Norm, gauge, total, total_norm
from jaxmgrit.solvers.mgrit.cycle import Grids, cycle, skip_first_down
from jaxmgrit.solvers.result import is_stalled, result_code
from jaxmgrit.solvers.sequential import sequential
from jaxmgrit.system.grid import Grid, run_interval

if TYPE_CHECKING:
    from jaxmgrit._types import State
    from jaxmgrit.solvers.mgrit.options import Options

PyTree = Any

# What the history holds where no residual was recorded: NaN would raise under `jax_debug_nans`.
NONE = -1.0

# Gives up after so many cycles without a residual lower than all before: FCF-cycles on networks that converge at all
# were never seen to wait for more than two.
PATIENCE = 4

# Gives up at once where the residual is so many times the first one and the first values: nothing returns from there.
HOPELESS = 1e6


def iterate(grids: Grids, solver: Options, guess: State, initial: State) -> Outcome:
    """Solve by cycles from a guess of C-points."""
    dtype = norm_dtype(initial)

    def norm(state: State) -> jax.Array:
        return (solver.norm or euclidean_norm)(state).astype(dtype)

    # Intervals of padding must hold values the layers can bear: they are computed, though not used.
    valid = _has_steps(grids[0])
    ends = where(valid, guess, repeat(initial, grids[0].level.share))
    loop = _until_tolerance if solver.has_tolerance else _all_cycles
    ends, norms, cycles, converged = loop(grids, solver, ends, initial, norm)
    # Exact values, but the cycles were wasted: another code than CONVERGED says so.
    rescued = jnp.zeros((), bool)
    if solver.sequential_fallback:
        rescued = ~converged
        ends = _unless(converged, ends, lambda: sequential(grids[0], initial))
    final = end_value(grids[0], ends, initial)
    # After a skipped first way down the second cycle is the first to record a residual, if there is one.
    first = norms[min(int(solver.skip_first_down), solver.cycles - 1)]
    last = norms[jnp.maximum(cycles - 1, 0)]
    # Measured at the end also for fixed cycles: a residual means nothing without the values it belongs to.
    scale = total_norm(grids[0], jax.vmap(norm)(ends))
    skipped_all = solver.skip_first_down & (cycles == 1)
    # The last residual may overflow though the values are good: after a rescue it is that of the wasted cycles.
    finite = is_finite(final, grids[0].backend) & (jnp.isfinite(last) | skipped_all | converged | rescued)
    # A residual that starts at rounding may grow tenfold: only above half of the digits is that divergence.
    diverged = last > jnp.maximum(10 * first, float(jnp.finfo(real_dtype(initial)).eps) ** 0.5 * scale)
    recorded = cycles - int(solver.skip_first_down)
    code = result_code(finite, converged, diverged, is_stalled(first, last, scale, recorded), rescued)
    return Outcome(ends, final, norms, cycles, code, scale)


def _unless(converged: jax.Array, ends: State, rescue: Callable[[], PyTree]) -> PyTree:
    # A loop of at most one pass rather than a `cond`, which under `vmap` would always run both branches.
    def once(carry: State) -> tuple[PyTree, jax.Array]:
        return rescue(), jnp.ones_like(carry[1])

    with at_most(0):  # so the cost model does not count what is the exception
        return jax.lax.while_loop(lambda carry: ~carry[1], once, (ends, converged))[0]


def _has_steps(grid: Grid) -> Any:
    mask = grid.mask
    return None if mask is None else jnp.any(mask, axis=1)


def _first(grids: Grids, solver: Options, ends: State, initial: State) -> tuple[PyTree, int]:
    if not solver.skip_first_down:
        return ends, 0
    return skip_first_down(grids, 1, solver, initial), 1


def _all_cycles(grids: Grids, solver: Options, ends: State, initial: State, norm: Norm) -> tuple[Any, ...]:
    ends, done = _first(grids, solver, ends, initial)

    def residual(arrived: State, end: State) -> jax.Array:
        return norm(subtract(arrived, end))

    def one(ends: State, _: None) -> tuple[PyTree, jax.Array]:
        ends, norms = cycle(grids, solver, ends, initial, residual)
        return ends, total_norm(grids[0], norms)

    # A scan of fixed length rather than a while loop, so that reverse mode can go through the cycles.
    ends, norms = jax.lax.scan(one, ends, None, length=solver.cycles - done)
    norms = jnp.concatenate([jnp.full((done,), NONE, norms.dtype), norms])
    # Without a tolerance nothing counts as converged: the code is CYCLES_USED_UP at best.
    return ends, norms, jnp.asarray(solver.cycles, jnp.int32), jnp.asarray(False)


class _Progress(NamedTuple):
    """What a loop of cycles knows: C-points, history, cycles done, and how its residuals have gone."""

    ends: PyTree
    norms: jax.Array
    cycles: jax.Array
    first: jax.Array
    limit: jax.Array
    lowest: jax.Array
    waited: jax.Array
    stop: jax.Array
    met: jax.Array


def _until_tolerance(grids: Grids, solver: Options, ends: State, initial: State, norm: Norm) -> tuple[Any, ...]:
    ends, done = _first(grids, solver, ends, initial)
    dtype = norm_dtype(initial)

    def measure(arrived: State, end: State) -> Gauge:
        return gauge(arrived, end, norm, solver.batch_axis)

    def one(now: _Progress) -> _Progress:
        ends, gauges = cycle(grids, solver, now.ends, initial, measure)
        r, scale, unmet = total(grids[0], gauges)
        begins = now.cycles == done
        first = jnp.where(begins, r, now.first)
        limit = jnp.where(begins, HOPELESS * jnp.maximum(r, scale), now.limit)
        met = unmet == 0
        if solver.atol is not None:
            met |= r <= solver.atol
        # rtol = 0 asks for rounding alone, which `unmet` has answered.
        if solver.rtol:
            met |= (r <= solver.rtol * first) & jnp.isfinite(first)
        lower = r < now.lowest
        waited = jnp.where(lower, 0, now.waited + 1)
        hopeless = ~jnp.isfinite(r) | (r > limit) | (waited >= PATIENCE)
        norms = now.norms.at[now.cycles].set(r)
        lowest = jnp.where(lower, r, now.lowest)
        return _Progress(ends, norms, now.cycles + 1, first, limit, lowest, waited, met | hopeless, met)

    no, zero = jnp.asarray(False), jnp.zeros((), dtype)
    history = jnp.full((solver.cycles,), NONE, dtype)
    counts = jnp.asarray(done, jnp.int32), jnp.zeros((), jnp.int32)
    start = _Progress(ends, history, counts[0], zero, zero, jnp.full((), jnp.inf, dtype), counts[1], no, no)
    # Under a user's `shard_map` a loop's carry must vary over mesh axes from the start as it does after a pass.
    start = vary(start, varying_axes(initial))
    with at_most(solver.cycles - done):
        end = jax.lax.while_loop(lambda now: (now.cycles < solver.cycles) & ~now.stop, one, start)
    return end.ends, end.norms, end.cycles, end.met


def end_value(grid: Grid, ends: State, initial: State) -> PyTree:
    """The value at the end of the run, on every device: the last C-point, or F-relaxation of the trailing F-points."""

    def value(local: int) -> PyTree:
        if grid.level.trailing == 0:
            return jax.tree.map(lambda x: x[local], ends)
        data = (grid.starts(ends, initial), grid.blocks, grid.mask)
        start, block, mask = jax.tree.map(lambda x: x[local], data)
        return run_interval(grid, start, block, mask, None)[0]

    return at_last_interval(grid, value)
