"""Where the adjoint is linearised: the state's fine values, in the adjoint's intervals."""

from __future__ import annotations

from typing import Any

import jax

from jaxmgrit._pytree import fold
from jaxmgrit.solvers.mgrit.grids import Linearisation
from jaxmgrit.solvers.mgrit.relaxation import Grid, by_intervals, points, run_interval
from jaxmgrit.system.partition import Level, relayout

PyTree = Any


def linearise(state: Grid, ends: PyTree, u0: PyTree, target: Level) -> Linearisation:
    """The fine states at which the adjoint of partition `target` is linearised, from the state's C-points.

    The adjoint's intervals end where the state's do only if the coarsening factor divides N. Else each begins at an
    F-point
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
        start, block, mask = args
        return run_interval(state, start, block, mask, None)[0]

    data = jax.tree.map(lambda x: x[:, :count], (state.blocks, state.mask))
    return by_intervals(sweep, (starts, *data), state.level.share, state.batch)
