"""The cycle, on one page: relax, restrict, recurse, correct."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import add, unfold, where
from jaxmgrit.solvers.mgrit.fas import Measure, coarse_rhs, correct, restrict
from jaxmgrit.solvers.mgrit.relaxation import fc_relax
from jaxmgrit.solvers.sequential import relay
from jaxmgrit.system.grid import Grid, c_points, entry, points, run_interval

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, State
    from jaxmgrit.solvers.mgrit.options import Options

PyTree = Any
Grids = Sequence[Grid]


def cycle(grids: Grids, solver: Options, ends: State, initial: State, measure: Measure) -> tuple[PyTree, PyTree]:
    """One V- or F-cycle from the finest level.

    Args:
        grids: two or more levels.
        solver: relaxations and kind of cycle.
        ends: C-points of the finest level.
        initial: C-point 0.
        measure: (what an interval arrives at, the C-point at its end) -> what is to be known of the two.

    Returns:
        The corrected C-points, and what was measured before the correction, one entry per interval.
    """
    # None: g = 0 on level 0; an adjoint's running cost is part of its step there.
    ends = fc_relax(grids[0], solver.cf_relaxations[0], ends, None, initial, solver.relaxation_weight)
    # One sweep serves the residual and the right-hand side: the interval's result is in the cache only now.
    rhs, measured = coarse_rhs(grids[0], grids[1], ends, None, initial, measure)
    return coarse_solve(grids, 1, solver, ends, rhs, initial), measured


def coarse_solve(
    grids: Grids, depth: int, solver: Options, ends: State, rhs: State, initial: State, first: State = 0
) -> PyTree:
    """Solve level `depth` for the C-points of the level above: exactly on the coarsest, else by one cycle.

    Args:
        grids: all levels.
        depth: the level to solve.
        solver: relaxations and kind of cycle.
        ends: C-points of level depth - 1, the guess.
        rhs: right-hand side of level `depth`, one entry per interval of level depth - 1; None for zero.
        initial: C-point 0.
        first: 0 for the way down of an F-cycle, 1 once it is on its way up; see `_f_cycle`.

    Returns:
        C-points of level depth - 1.
    """
    above, grid = grids[depth - 1], grids[depth]
    # The coarsest level is solved exactly, so its guess need not be sent.
    guess = None if depth == len(grids) - 1 else ends
    guess, rhs = restrict(above, grid, (guess, rhs))
    return correct(above, grid, solve_level(grids, depth, solver, unfold(guess), rhs, initial, first))


def solve_level(
    grids: Grids, depth: int, solver: Options, guess: State, rhs: State, initial: State, first: State = 0
) -> PyTree:
    """The values at all slots of a level below the finest, leaves (share * factor, ...); `guess` likewise."""
    grid = grids[depth]
    if depth == len(grids) - 1:
        return solve_coarsest(grid, rhs, initial)
    own = c_points(guess, grid.level.factor, grid.backward)
    if solver.cycle == "F":
        own = _f_cycle(grids, depth, solver, own, rhs, initial, first)
    else:
        own = v_cycle(grids, depth, solver, own, rhs, initial)
    # The level above takes all points of this one, F-points too: they are its C-points.
    return points(grid, own, rhs, initial)


def v_cycle(
    grids: Grids, depth: int, solver: Options, ends: State, rhs: State, initial: State, first: State = 0
) -> PyTree:
    """Relax, restrict, recurse, correct on a level below the finest: its corrected C-points."""
    grid, below = grids[depth], grids[depth + 1]
    ends = fc_relax(grid, solver.cf_relaxations[1], ends, rhs, initial, solver.relaxation_weight)
    below_rhs, _ = coarse_rhs(grid, below, ends, rhs, initial)
    return coarse_solve(grids, depth + 1, solver, ends, below_rhs, initial, first)


def _f_cycle(
    grids: Grids, depth: int, solver: Options, ends: State, rhs: State, initial: State, first: State
) -> PyTree:
    """Pass 0 recurses into an F-cycle, pass 1 (the additional V-cycle) into passes 1 only; from pass `first` on.

    As a loop every level is traced once; unrolled, the program would grow with the square of the number of levels.
    """

    def one(own: State, number: jax.Array) -> tuple[PyTree, None]:
        def run(own: State) -> PyTree:
            return v_cycle(grids, depth, solver, own, rhs, initial, number)

        # Not a shorter scan: `first` is traced where an F-cycle is inside another one's loop.
        return jax.lax.cond(number >= first, run, lambda own: own, own), None

    return jax.lax.scan(one, ends, jnp.arange(2))[0]


def solve_coarsest(grid: Grid, rhs: State, initial: State) -> PyTree:
    """All slots of the coarsest level, one step after another: leaves (steps, ...), in the place of the rhs.

    A level that is spread has one interval per device, run in turn.
    """
    # The coarsest level is one interval (per device, where it is spread), so the share's axis has length 1.
    block, mask, source = jax.tree.map(lambda x: x[0], (grid.blocks, grid.mask, rhs))

    def one(carry: tuple[PyTree, PyTree], inputs: Arrays) -> tuple[tuple[PyTree, PyTree], None]:
        # The solution takes the right-hand side's place, slot by slot: a second array would leave the cache.
        value, values = carry
        j, slot, inside = inputs
        value = where(inside, add(grid.advance(slot, value), entry(values, j)), value)
        return (value, jax.tree.map(lambda x, y: x.at[j].set(y), values, value)), None

    def chain(start: State) -> tuple[PyTree, PyTree]:
        # Only the first cycle of `skip_first_down` has no right-hand side.
        if source is None:
            return run_interval(grid, start, block, mask, None, keep=True)
        steps = jnp.arange(grid.level.factor, dtype=jnp.int32)
        inputs = (steps, grid.expand(block), mask)
        return jax.lax.scan(one, (start, source), inputs, reverse=grid.backward)[0]

    return relay(grid, chain, initial)


def skip_first_down(grids: Grids, depth: int, solver: Options, initial: State) -> PyTree:
    """The first cycle when it starts on the coarsest level: C-points of level depth - 1, all right-hand sides zero."""
    above, grid = grids[depth - 1], grids[depth]
    if depth == len(grids) - 1:
        return correct(above, grid, solve_coarsest(grid, None, initial))
    own = skip_first_down(grids, depth + 1, solver, initial)
    if solver.cycle == "F":
        # This is the way up of an F-cycle already, on which levels below do V-cycles only: passes from 1 on.
        own = v_cycle(grids, depth, solver, own, None, initial, 1)
    return correct(above, grid, points(grid, own, None, initial))
