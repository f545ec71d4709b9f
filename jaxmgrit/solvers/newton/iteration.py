"""Newton's iteration over the C-points, the same for the state and the adjoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import PyTree, euclidean_norm, repeat, where
from jaxmgrit._scopes import at_most
from jaxmgrit.solvers.base import Outcome, Sweep, at_last_interval, is_finite
from jaxmgrit.solvers.convergence import ROUNDING, Gauge, gauge, total
from jaxmgrit.solvers.newton.recurrence import apply, recur
from jaxmgrit.solvers.newton.samples import Samples, samples_of
from jaxmgrit.solvers.result import Result, is_stalled, result_code
from jaxmgrit.solvers.sequential import sequential
from jaxmgrit.system.grid import Grid, run_interval

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Layers, State
    from jaxmgrit.solvers.newton.options import Options

# What the history holds where no residual was recorded.
NONE = -1.0

# The adjoint is linear: one iteration is exact, and its residual is what d products and sums of rounding leave.
ADJOINT_ROUNDING = 1e3

# After so many iterations so many of the intervals must meet the tolerance, those aside which are exact by then anyway.
PATIENCE, ENOUGH = 8, 0.25

# Relaxation goes on as long as it leaves at most so much of the residual: an iteration costs several relaxations.
FORGETS = 0.1

# By how much the Jacobians of single samples may miss a tangent that differs between samples.
COUPLED = 1e-3


class Progress(NamedTuple):
    """Where the iteration stands.

    Attributes:
        ends: C-points, leaves (share, ...).
        norms: recorded residual norms, (iterations,).
        done: iterations done, ().
        coupled: whether the Jacobians of single samples missed something, ().
        arrived: what the intervals arrive at from the C-points, leaves (share, ...), where that is wanted.
    """

    ends: PyTree
    norms: jax.Array
    done: jax.Array
    coupled: jax.Array
    arrived: PyTree = None


class Linearised(NamedTuple):
    """An interval, run through with the tangents of all components.

    Attributes:
        arrived: Psi, what it arrives at.
        jacobian: A, (d, samples, d), the input's component first.
        mismatch: of A and a tangent that differs between samples, relative to A, (); None where not looked for.
    """

    arrived: PyTree
    jacobian: jax.Array
    mismatch: jax.Array | None


def linearise_interval(
    grid: Grid, samples: Samples, probe: bool, start: State, block: Layers, mask: jax.Array | None
) -> Linearised:
    """Psi and A of one interval: its slots' linearisation pushes all tangents on at once."""
    signs = samples.signs()
    tangents = samples.basis()
    # One tangent that differs between samples: the samples' own Jacobians predict it unless samples are coupled.
    if probe:
        tangents = jax.tree.map(lambda v, w: jnp.concatenate([v, w[None]]), tangents, samples.unravel(signs))

    def one(carry: State, inputs: Arrays) -> tuple[PyTree, None]:
        value, tangents = carry
        slot, inside = inputs
        after, push = jax.linearize(partial(grid.advance, slot), value)
        return where(inside, (after, jax.vmap(push)(tangents)), carry), None

    (arrived, tangents), _ = jax.lax.scan(one, (start, tangents), (grid.expand(block), mask), reverse=grid.backward)
    rows = jax.vmap(samples.ravel)(tangents)
    if not probe:
        return Linearised(arrived, rows, None)
    jacobian, pushed = rows[:-1], rows[-1]
    missed = jnp.max(jnp.abs(jnp.einsum("isk,si->sk", jacobian, signs) - pushed))
    # The largest row sum: the most that A can make of any tangent of signs.
    size = jnp.max(jnp.sum(jnp.abs(jacobian), axis=0))
    return Linearised(arrived, jacobian, missed / jnp.maximum(size, jnp.finfo(size.dtype).tiny))


def arrive(grid: Grid, ends: State, initial: State) -> PyTree:
    """What the intervals arrive at from the C-points, leaves (share, ...)."""

    def through(start: State, block: Layers, mask: jax.Array | None) -> PyTree:
        return run_interval(grid, start, block, mask, None)[0]

    return grid.sweep(through, ends, initial, grid.blocks, grid.mask)


def solve_newton(grid: Grid, options: Options, guess: State, initial: State, sweep: Sweep) -> tuple[Outcome, PyTree]:
    """Solve from a guess of C-points; also what `sweep` makes of them, which tells how well they fit."""
    samples = samples_of(initial, options.jacobian, options.batch_axis)
    mask = grid.mask
    valid = None if mask is None else jnp.any(mask, axis=1)
    ends = where(valid, guess, repeat(initial, grid.level.share))
    if grid.backward:
        # One iteration is exact from anywhere; from zero, adjoints that decay in depth keep their relative accuracy.
        ends = jax.tree.map(jnp.zeros_like, ends)
    dtype = samples.dtype
    start = Progress(
        ends,
        jnp.full((options.iterations,), NONE, dtype),
        jnp.zeros((), jnp.int32),
        jnp.asarray(False),
    )
    improve: Callable[[Progress], tuple[Progress, Gauge]] = partial(_improve, grid, options, samples, initial)
    if grid.backward:
        # The adjoint is affine: its Jacobians are made once, not in every iteration.
        transpose = _transpose(grid, samples, initial)
        start = start._replace(arrived=transpose.arrive(grid, samples, ends, initial))
        improve = partial(_improve_adjoint, grid, options, samples, initial, transpose)
    loop = _until_tolerance if options.has_tolerance else _all_iterations
    progress, last, converged, rescued, made = loop(grid, options, improve, start, initial, sweep)
    first = progress.norms[0]
    final = at_last_interval(grid, lambda local: jax.tree.map(lambda x: x[local], progress.ends))
    finite = is_finite(final, grid.backend) & (jnp.isfinite(last.residual) | converged | rescued)
    eps = float(jnp.finfo(dtype).eps)
    code = result_code(
        finite,
        converged,
        last.residual > jnp.maximum(10 * first, eps**0.5 * last.scale),
        is_stalled(first, last.residual, last.scale, progress.done),
        rescued,
    )
    # Only an exact result is renamed: every other code says something worse.
    exact = (code == Result.CONVERGED.value) | (code == Result.SEQUENTIAL.value)
    code = jnp.where(exact & progress.coupled, Result.COUPLED.value, code).astype(jnp.int32)
    return Outcome(progress.ends, final, progress.norms, progress.done, code, last.scale), made


class Transpose(NamedTuple):
    """The adjoint's intervals, which are affine: all there is to know of them.

    Attributes:
        jacobian: (share, d, samples, d), the input's component first.
        constant: what they arrive at from 0, by the running cost, rows (share, samples, d).
    """

    jacobian: jax.Array
    constant: jax.Array

    def arrive(self, grid: Grid, samples: Samples, ends: State, initial: State) -> PyTree:
        """What the intervals arrive at from the C-points, leaves (share, ...)."""
        starts = jax.vmap(samples.ravel)(grid.starts(ends, initial))
        arrived = apply(self.jacobian, starts) + self.constant
        usable = jnp.all(jnp.isfinite(arrived), axis=-1, keepdims=True)
        return jax.vmap(samples.unravel)(jnp.where(usable, arrived, self.constant))


def _transpose(grid: Grid, samples: Samples, initial: State) -> Transpose:
    """All intervals of the adjoint, from their layers' linearisations where those are at hand."""
    if grid.linearised is not None:
        pushed, constant = grid.linearised
        jacobian = samples.transpose(jax.vmap(jax.vmap(samples.ravel))(pushed))
        if constant is None:
            return Transpose(jacobian, jnp.zeros((grid.level.share, *jacobian.shape[2:]), jacobian.dtype))
        return Transpose(jacobian, jax.vmap(samples.ravel)(constant))
    nothing = jax.tree.map(jnp.zeros_like, initial)
    through = partial(linearise_interval, grid, samples, False)
    swept = grid.sweep(through, repeat(nothing, grid.level.share), nothing, grid.blocks, grid.mask)
    return Transpose(swept.jacobian, jax.vmap(samples.ravel)(swept.arrived))


def _improve(grid: Grid, options: Options, samples: Samples, initial: State, now: Progress) -> tuple[Progress, Gauge]:
    """One iteration of the state, and the residual before it."""
    swept = grid.sweep(partial(linearise_interval, grid, samples, True), now.ends, initial, grid.blocks, grid.mask)
    # In half precision rounding alone may exceed COUPLED.
    limit = max(COUPLED, 64 * float(jnp.finfo(jax.tree.leaves(initial)[0].dtype).eps))
    missed = jnp.sum(swept.mismatch > limit, dtype=jnp.int32)
    missed = grid.backend.data_sum(grid.backend.all_sum(missed))
    coupled = now.coupled | ((now.done == 0) & (missed > 0))
    return _corrected(grid, options, samples, now._replace(coupled=coupled), swept.jacobian, swept.arrived)


def _improve_adjoint(
    grid: Grid, options: Options, samples: Samples, initial: State, transpose: Transpose, now: Progress
) -> tuple[Progress, Gauge]:
    """One iteration of the adjoint, whose Jacobians are those of the first, and the residual before it."""
    now, before = _corrected(grid, options, samples, now, transpose.jacobian, now.arrived)
    return now._replace(arrived=transpose.arrive(grid, samples, now.ends, initial)), before


def _corrected(
    grid: Grid, options: Options, samples: Samples, now: Progress, jacobian: jax.Array, arrived: State
) -> tuple[Progress, Gauge]:
    """The C-points after a correction, and the residual before it."""
    before = total(grid, _gauges(options, arrived, now.ends, ROUNDING))
    rows, reached = (jax.vmap(samples.ravel)(x) for x in (now.ends, arrived))
    deltas = recur(grid, jacobian, reached - rows)
    # Where products of Jacobians overflow, the C-point is relaxed instead, which is the correction for A = 0.
    usable = jnp.all(jnp.isfinite(deltas), axis=-1, keepdims=True)
    ends = jax.vmap(samples.unravel)(jnp.where(usable, rows + deltas, reached))
    norms = now.norms.at[now.done].set(before.residual)
    return now._replace(ends=ends, norms=norms, done=now.done + 1), before


def _gauges(options: Options, arrived: State, ends: State, rounding: float) -> Gauge:
    """The gauges of this device's intervals, leaves (share,)."""
    return jax.vmap(partial(gauge, norm=euclidean_norm, batch_axis=options.batch_axis, rounding=rounding))(
        arrived, ends
    )


def _all_iterations(
    grid: Grid, options: Options, improve: Callable[..., Any], start: Progress, initial: State, sweep: Sweep
) -> tuple[Progress, Gauge, jax.Array, jax.Array, PyTree]:
    """Exactly so many iterations, differentiable like any loop of fixed length."""
    progress, gauges = jax.lax.scan(lambda now, _: improve(now), start, None, length=options.iterations)
    last = jax.tree.map(lambda x: x[-1], gauges)
    no = jnp.asarray(False)
    return progress, last, no, no, sweep(progress.ends)[1]


def _until_tolerance(
    grid: Grid, options: Options, improve: Callable[..., Any], start: Progress, initial: State, sweep: Sweep
) -> tuple[Progress, Gauge, jax.Array, jax.Array, PyTree]:
    """Iterations until `sweep`, which follows each, finds the tolerance met; else the sequential fallback.

    The state is relaxed first, which costs nothing beside the sweep that measures it: where intervals forget, that is
    all there is to do.

    What runs once only is a loop of at most one pass rather than a `cond`, which under `vmap` would run both branches.
    """
    if not grid.backward:
        start = start._replace(arrived=arrive(grid, start.ends, initial))
    first = total(grid, _gauges(options, start.arrived, start.ends, ROUNDING)).residual
    # C-points in all parts of the batch, which is how `total` counts.
    intervals = -(-grid.level.steps // grid.level.factor) * grid.backend.data_size
    rounding = ADJOINT_ROUNDING if grid.backward else ROUNDING

    def allowed(first: jax.Array) -> jax.Array:
        bounds = [jnp.zeros_like(first)]
        bounds += [] if options.atol is None else [jnp.full_like(first, options.atol)]
        bounds += [] if options.rtol is None else [options.rtol * first]
        return jnp.max(jnp.stack(bounds))

    def one(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        now, hopeless, relaxing, before, *_ = carry
        if not grid.backward:
            now = now._replace(ends=where(relaxing, now.arrived, now.ends))
        # The fallback is one more pass of this loop, so that `sweep`, which may hold all gradients, is compiled once.
        with at_most(1):
            now = _once(~(hopeless | relaxing), lambda now: improve(now)[0], now)
        with at_most(0):  # so the cost model does not count what is the exception
            now = now._replace(ends=_once(hopeless, lambda _: sequential(grid, initial), now.ends))
        arrived, made = sweep(now.ends)
        now = now._replace(arrived=arrived)
        bound = allowed(now.norms[0])
        gauges = _gauges(options, arrived, now.ends, rounding)
        # An interval's share of the bound: where all keep to theirs, the root of the sum of squares keeps to the bound.
        misses = (gauges.unmet > 0) & ~(gauges.residual <= bound / intervals**0.5)
        whole = total(grid, gauges._replace(unmet=misses.astype(gauges.unmet.dtype)))
        met = (whole.unmet == 0) | (whole.residual <= bound)
        # The first k C-points are exact after k iterations, converging or not: they prove nothing.
        others = intervals - now.done.astype(whole.unmet.dtype) * grid.backend.data_size
        hardly = (now.done >= PATIENCE) & (whole.unmet > (1 - ENOUGH) * others)
        failed = ~met & ~hopeless & (hardly | (now.done >= options.iterations))
        if grid.backward:
            # What one iteration of a linear equation leaves is what single samples' Jacobians do not know.
            missed = ~met & ~hopeless & (now.done == 1) & (whole.residual > COUPLED * whole.scale)
            now = now._replace(coupled=now.coupled | missed)
        stop = met | hopeless | (failed & (not options.sequential_fallback))
        relaxing = relaxing & (whole.residual <= FORGETS * before)
        rescue = failed & options.sequential_fallback
        return now, rescue, relaxing, whole.residual, stop, met & ~hopeless, hopeless, whole, made

    # Shapes alone: a first pass outside the loop would compile its body twice.
    begin = (start, jnp.asarray(False), jnp.asarray(not grid.backward), first)
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, begin)[4:])
    with at_most(options.iterations):
        now, *_, met, rescued, whole, made = jax.lax.while_loop(lambda carry: ~carry[4], one, (*begin, *blank))
    return now, whole, met, rescued, made


def _once(wanted: jax.Array, f: Callable[[PyTree], PyTree], value: State) -> PyTree:
    """f(value) where that is wanted, else the value itself."""
    return jax.lax.while_loop(
        lambda carry: carry[0], lambda carry: (jnp.zeros_like(carry[0]), f(carry[1])), (wanted, value)
    )[1]
