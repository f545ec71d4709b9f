"""Relaxation: all intervals of a level at once, each from its C-point through its slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmgrit.backend.base import Backend
from jaxmgrit.hierarchy import Level
from jaxmgrit.pytree import add, fold, repeat, unfold, where

PyTree = Any


def as_slots(block: PyTree) -> PyTree:
    """The block itself: its slots' data are stored."""
    return block


@dataclass(frozen=True)
class Grid:
    """A level ready to run on this device: its data, how one step is made, in which direction.

    The unknowns are `ends`: for each interval the value at the end that the run reaches, leading axis share. At
    complete
    intervals these are the C-points 1, 2, ...; C-point 0 is the given initial value.

    Attributes:
        level: the level's shape.
        backend: spreads the level's intervals.
        blocks: data of the slots, leaves (share, factor, ...), or what `expand` makes them from.
        advance: (slot data, value) -> next value, without a right-hand side.
        expand: data of one interval -> data of its slots (leading axis factor).
        backward: whether the run goes from the last slot to the first (the adjoint).
        batch: how many intervals go through one batched sweep at a time.
    """

    level: Level
    backend: Backend
    blocks: PyTree
    advance: Callable[[PyTree, PyTree], PyTree]
    expand: Callable[[PyTree], PyTree] = as_slots
    backward: bool = False
    batch: int = 1

    @property
    def mask(self) -> Any:
        """(share, factor) booleans: slots that hold a step; None if all do."""
        return self.level.slot_mask(self.backend.index())

    def starts(self, ends: PyTree, initial: PyTree) -> PyTree:
        """The value each interval starts from: its neighbour's end, or the initial value."""
        starts = self.backend.shift(ends, -1 if self.backward else 1, initial)
        level = self.level
        if self.backward and level.last_interval + 1 < level.intervals and not level.front:
            # The run begins behind whole intervals of padding.
            interval = self.backend.index() * level.share + jnp.arange(level.share, dtype=jnp.int32)
            starts = where(interval == level.last_interval, repeat(initial, level.share), starts)
        return starts


def by_intervals(f: Callable[[PyTree], PyTree], intervals: PyTree, share: int, batch: int) -> PyTree:
    """Map f over the leading axis, `batch` intervals at a time."""
    if batch >= share:
        return jax.vmap(f)(intervals)
    if batch == 1:
        return jax.lax.map(f, intervals)
    return jax.lax.map(f, intervals, batch_size=batch)


def run_interval(
    grid: Grid, start: PyTree, block: PyTree, mask: Any, rhs: PyTree, *, keep: bool = False, skip_last: bool = False
) -> tuple[PyTree, PyTree]:
    """Through the slots of one interval: (value at its end, values after each slot if `keep`).

    With `skip_last` only as far as the last F-point.
    """

    def one(value: PyTree, inputs: PyTree) -> tuple[PyTree, PyTree]:
        slot, inside, source = inputs
        after = grid.advance(slot, value)
        if source is not None:
            after = add(after, source)
        after = where(inside, after, value)
        return after, after if keep else None

    inputs = (grid.expand(block), mask, rhs)
    if skip_last:
        f_points = slice(1, None) if grid.backward else slice(None, -1)
        inputs = jax.tree.map(lambda x: x[f_points], inputs)
    return jax.lax.scan(one, start, inputs, reverse=grid.backward)


def f_relax(grid: Grid, ends: PyTree, rhs: PyTree, initial: PyTree) -> PyTree:
    """F-relaxation and the step to the next C-point: from each C-point, the value its interval arrives at.

    F-points are not kept. The result at interval j is Phi(u^{c-1}) + g^c for the C-point c at its end.

    Args:
        grid: the level.
        ends: C-points, leaves (share, ...).
        rhs: right-hand side g at every slot, leaves (share, factor, ...), or None.
        initial: C-point 0, without a leading axis.
    """

    def sweep(args: PyTree) -> PyTree:
        return run_interval(grid, *args)[0]

    args = (grid.starts(ends, initial), grid.blocks, grid.mask, rhs)
    return by_intervals(sweep, args, grid.level.share, grid.batch)


def c_relax(grid: Grid, arrived: PyTree) -> PyTree:
    """C-relaxation: each C-point becomes what its interval arrived at."""
    return arrived


def points(grid: Grid, ends: PyTree, rhs: PyTree, initial: PyTree) -> PyTree:
    """F-relaxation that keeps the F-points: all points of a level after each slot, leaves (share * factor, ...)."""

    def sweep(args: PyTree) -> PyTree:
        start, end, block, mask, source = args
        inner = run_interval(grid, start, block, mask, source, keep=True, skip_last=True)[1]
        pair = (end, inner) if grid.backward else (inner, end)
        return jax.tree.map(partial(_join, backward=grid.backward), *pair)

    args = (grid.starts(ends, initial), ends, grid.blocks, grid.mask, rhs)
    return unfold(by_intervals(sweep, args, grid.level.share, grid.batch))


def _join(a: Any, b: Any, backward: bool) -> Any:
    return jnp.concatenate([a[None], b] if backward else [a, b[None]])


def c_points(values: PyTree, factor: int, backward: bool) -> PyTree:
    """The values at the intervals' ends among values at all slots: (share * factor, ...) -> (share, ...)."""
    return jax.tree.map(lambda x: x[:, 0 if backward else -1], fold(values, factor))
