"""Cycles until done, and the sequential run; the same for the state and the adjoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import euclidean_norm, real_dtype, repeat, where
from jaxmgrit.solvers.base import Outcome, at_last_interval, is_finite
from jaxmgrit.solvers.mgrit.cycle import Grids, cycle, skip_first_down
from jaxmgrit.solvers.mgrit.fas import Norm, c_norm
from jaxmgrit.solvers.mgrit.options import Options
from jaxmgrit.solvers.result import result_code
from jaxmgrit.solvers.sequential import sequential
from jaxmgrit.system.grid import Grid, run_interval

PyTree = Any

# What the history holds where no residual was recorded: NaN would raise under `jax_debug_nans`.
NONE = -1.0

# Residuals up to so many units in the last place of the C-points' norm are rounding: what replacing C-points leaves.
ROUNDING = 1.0


def iterate(grids: Grids, solver: Options, guess: PyTree, initial: PyTree) -> Outcome:
    """Solve by cycles from a guess of C-points."""
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
    finite = is_finite(final, grids[0].backend) & (jnp.isfinite(last) | skipped_all | converged)
    code = result_code(finite, converged, last > jnp.maximum(10 * first, float(jnp.finfo(dtype).eps) ** 0.5 * scale))
    return Outcome(ends, final, norms, cycles, code)


def _unless(converged: jax.Array, ends: PyTree, rescue: Callable[[], PyTree]) -> tuple[PyTree, jax.Array]:
    # A loop of at most one pass rather than a `cond`, which under `vmap` would always run both branches.
    def once(carry: PyTree) -> tuple[PyTree, jax.Array]:
        return rescue(), jnp.ones_like(carry[1])

    return jax.lax.while_loop(lambda carry: ~carry[1], once, (ends, converged))


def _has_steps(grid: Grid) -> Any:
    mask = grid.mask
    return None if mask is None else jnp.any(mask, axis=1)


def _first(grids: Grids, solver: Options, ends: PyTree, initial: PyTree) -> tuple[PyTree, int]:
    if not solver.skip_first_down:
        return ends, 0
    return skip_first_down(grids, 1, solver, initial), 1


def _all_cycles(grids: Grids, solver: Options, ends: PyTree, initial: PyTree, norm: Norm) -> tuple[Any, ...]:
    ends, done = _first(grids, solver, ends, initial)

    def one(ends: PyTree, _: None) -> tuple[PyTree, jax.Array]:
        return cycle(grids, solver, ends, initial, norm)

    ends, norms = jax.lax.scan(one, ends, None, length=solver.cycles - done)
    norms = jnp.concatenate([jnp.full((done,), NONE, norms.dtype), norms])
    return ends, norms, jnp.asarray(solver.cycles, jnp.int32), jnp.asarray(False)


def _until_tolerance(grids: Grids, solver: Options, ends: PyTree, initial: PyTree, norm: Norm) -> tuple[Any, ...]:
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
        jnp.full((solver.cycles,), NONE, dtype),
        jnp.asarray(done, jnp.int32),
        no,
        jnp.zeros((), dtype),
        no,
    )
    ends, norms, cycles, _, _, met = jax.lax.while_loop(unfinished, one, start)
    return ends, norms, cycles, met


def end_value(grid: Grid, ends: PyTree, initial: PyTree) -> PyTree:
    """The value at the end of the run, on every device: the last C-point, or F-relaxation of the trailing F-points."""

    def value(local: int) -> PyTree:
        if grid.level.trailing == 0:
            return jax.tree.map(lambda x: x[local], ends)
        data = (grid.starts(ends, initial), grid.blocks, grid.mask)
        start, block, mask = jax.tree.map(lambda x: x[local], data)
        return run_interval(grid, start, block, mask, None)[0]

    return at_last_interval(grid, value)
