"""A level ready to run: its intervals, swept over all at once, and the run through one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import add, fold, repeat, unfold, where
from jaxmgrit._scopes import on_level, sweep
from jaxmgrit.backend.local import LOCAL

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Index, Layers, Mask, State
    from jaxmgrit.backend.base import Backend
    from jaxmgrit.system.partition import Level

PyTree = Any


def as_slots(block: Layers) -> PyTree:
    """The block itself: its slots' data are stored."""
    return block


class Linearised(NamedTuple):
    """The intervals of an adjoint as affine maps.

    Attributes:
        pushed: tangents of the state pushed through each interval of it, leaves (share, tangents, ...).
        constant: what intervals of adjoint 0 arrive at, leaves (share, ...); None where that is 0.
    """

    pushed: PyTree
    constant: PyTree


@dataclass(frozen=True)
class Grid:
    """A level ready to run on this device: its data, how one step is made, in which direction.

    The unknowns are `ends`: for each interval the value at the end that the run reaches, leading axis share. At
    complete intervals these are the C-points 1, 2, ...; C-point 0 is the given initial value.

    Attributes:
        level: the level's shape.
        backend: spreads the level's intervals.
        blocks: data of the slots, leaves (share, factor, ...), or what `expand` makes them from.
        advance: (slot data, value) -> next value, without a right-hand side.
        expand: data of one interval -> data of its slots (leading axis factor).
        backward: whether the run goes from the last slot to the first (the adjoint).
        batch: how many intervals go through one batched sweep at a time.
        linearised: of an adjoint, its intervals as affine maps, where they are known before it is solved.
    """

    level: Level
    backend: Backend
    blocks: PyTree
    advance: Callable[[PyTree, PyTree], PyTree]
    expand: Callable[[PyTree], PyTree] = as_slots
    backward: bool = False
    batch: int = 1
    linearised: Linearised | None = None

    @property
    def mask(self) -> Any:
        """(share, factor) booleans: slots that hold a step; None if all do."""
        return self.level.slot_mask(self.backend.index())

    def edge(self, ends: State, initial: State) -> PyTree:
        """The value that enters this device's first interval (the last one, where the run goes backwards)."""
        # Only the entry at the border travels; the others are on this device.
        by, last = (-1, slice(None, 1)) if self.backward else (1, slice(-1, None))
        with on_level(self.level.stride):
            arrived = self.backend.shift(jax.tree.map(lambda x: x[last], ends), by, initial)
        return jax.tree.map(lambda x: x[0], arrived)

    def starts(self, ends: State, initial: State, edge: State = None) -> PyTree:
        """The value each interval starts from: its neighbour's end, or the initial value."""
        if self.batch == 1 and self.level.share > 1:
            # A loop, since XLA would make a shifted array anew for everybody who needs it.
            return self.accumulate(lambda start: (start, None), ends, initial, None, edge=edge)[0]
        edge = self.edge(ends, initial) if edge is None else edge
        starts = LOCAL.shift(ends, -1 if self.backward else 1, edge)
        begins = self._begins(jnp.arange(self.level.share, dtype=jnp.int32))
        return starts if begins is None else where(begins, repeat(initial, self.level.share), starts)

    def _begins(self, interval: Any) -> Any:
        """Whether the run begins in an interval of this device, behind intervals of padding; None if there are none."""
        # Predict-then-sweep gives the adjoint the state's partition, whose padding the backward run meets first.
        level = self.level
        if not self.backward or level.front or level.last_interval + 1 == level.intervals:
            return None
        return self.backend.index() * level.share + interval == level.last_interval

    def sweep(self, f: Callable[..., PyTree], ends: State, initial: State, *data: PyTree) -> PyTree:
        """`f(start, *data)` of all intervals, leaves (share, ...), from what each starts from and its entry of data."""
        return self.accumulate(lambda *args: (f(*args), None), ends, initial, None, *data)[0]

    def accumulate(
        self,
        f: Callable[..., tuple[PyTree, PyTree]],
        ends: State,
        initial: State,
        total: State,
        *data: PyTree,
        edge: State = None,
    ) -> tuple[PyTree, PyTree]:
        """`sweep`, where f also returns an increment to the interval's entry of `total`, leaves (share, ...).

        `edge` is the value that enters this device's first interval, where that is known.
        """
        share = self.level.share
        if self.batch > 1 or share == 1:
            intervals = (self.starts(ends, initial, edge), *data)
            results, increment = by_intervals(lambda args: f(*args), intervals, share, self.batch)
            return results, add(total, increment)

        # One by one, nothing is copied: starts are looked up, and the total is changed where it is.
        edge = self.edge(ends, initial) if edge is None else edge
        first, before = (share - 1, 1) if self.backward else (0, -1)

        def one(total: State, args: Arrays) -> tuple[PyTree, PyTree]:
            j, own = args
            # Clipped, since the first interval looks up a neighbour too, and does not use it.
            start = where(j == first, edge, entry(ends, jnp.clip(j + before, 0, share - 1)))
            if (begins := self._begins(j)) is not None:
                start = where(begins, initial, start)
            results, increment = f(start, *own)
            return jax.tree.map(lambda x, y: x.at[j].add(y), total, increment), results

        with sweep():
            total, results = jax.lax.scan(one, total, (jnp.arange(share, dtype=jnp.int32), data))
        return results, total


def entry(tree: Arrays, index: Index) -> PyTree:
    """One entry of arrays."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), tree)


def by_intervals(f: Callable[[PyTree], PyTree], intervals: PyTree, share: int, batch: int) -> PyTree:
    """Map f over the leading axis, `batch` intervals at a time."""
    with sweep():
        if batch >= share:
            return jax.vmap(f)(intervals)
        if batch == 1:
            # `batch_size=1` would add an axis of one, which stops XLA from using plain matrix products.
            return jax.lax.map(f, intervals)
        return jax.lax.map(f, intervals, batch_size=batch)


def run_interval(
    grid: Grid, start: State, block: Layers, mask: Mask, rhs: State, *, keep: bool = False, skip_last: bool = False
) -> tuple[PyTree, PyTree]:
    """Through the slots of one interval: (value at its end, values after each slot if `keep`).

    With `skip_last` only as far as the last F-point.
    """

    def one(value: State, inputs: Arrays) -> tuple[PyTree, PyTree]:
        slot, inside, source = inputs
        after = grid.advance(slot, value)
        if source is not None:
            after = add(after, source)
        # Padding computes like any layer and is discarded: a branch would break the batch of intervals.
        after = where(inside, after, value)
        return after, after if keep else None

    # Linearised here, inside the sweep, so that only this batch's tapes exist at a time.
    inputs = (grid.expand(block), mask, rhs)
    if skip_last:
        f_points = slice(1, None) if grid.backward else slice(None, -1)
        inputs = jax.tree.map(lambda x: x[f_points], inputs)
    return jax.lax.scan(one, start, inputs, reverse=grid.backward)


def points(grid: Grid, ends: State, rhs: State, initial: State) -> PyTree:
    """F-relaxation that keeps the F-points: all points of a level after each slot, leaves (share * factor, ...)."""

    def fill(start: State, end: State, block: Layers, mask: Mask, source: State) -> PyTree:
        # The C-point at the end is the one given, not what the F-points lead to.
        inner = run_interval(grid, start, block, mask, source, keep=True, skip_last=True)[1]
        pair = (end, inner) if grid.backward else (inner, end)
        return jax.tree.map(partial(_join, backward=grid.backward), *pair)

    return unfold(grid.sweep(fill, ends, initial, ends, grid.blocks, grid.mask, rhs))


def _join(a: Arrays, b: Arrays, backward: bool) -> Any:
    return jnp.concatenate([a[None], b] if backward else [a, b[None]])


def c_points(values: State, factor: int, backward: bool) -> PyTree:
    """The values at the intervals' ends among values at all slots: (share * factor, ...) -> (share, ...)."""
    return jax.tree.map(lambda x: x[:, 0 if backward else -1], fold(values, factor))
