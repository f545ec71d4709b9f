"""The grids: levels, intervals, C- and F-points, and how they are cut into equal shares for the devices.

Level l has N_l steps in intervals of m_l; a *slot* holds one step. All slots of a level form one leading axis, parts x
share x factor long, in the order of the layers, also for the adjoint, which merely runs through it backwards. Where N_l
does not fill the slots, the rest is padding: after the last step for the state, before the first for the adjoint (whose
C-points count from the end). Padded slots pass states through unchanged.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import fit
from jaxmgrit._scopes import on_level

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Index


@dataclass(frozen=True)
class Level:
    """One grid: `steps` steps in `devices * share` intervals of `factor` slots each.

    Attributes:
        steps: N_l.
        factor: m_l, slots per interval; on the coarsest of several levels all steps (of a device) are one interval.
        share: intervals per device.
        devices: into how many parts the level is cut. On a coarse level that may be fewer than there are devices: then
            neighbours have the same part and solve it each for itself, and with 1 every device all of it.
        stride: layers of the network that one step replaces.
        front: whether the padding is before the first step rather than after the last.
        ragged: whether the incomplete interval too leads to a C-point.
    """

    steps: int
    factor: int
    share: int
    devices: int
    stride: int
    front: bool
    ragged: bool = False

    @property
    def intervals(self) -> int:
        """Intervals over all devices, padding included."""
        return self.devices * self.share

    @property
    def slots(self) -> int:
        """Slots over all devices, padding included."""
        return self.intervals * self.factor

    @property
    def first(self) -> int:
        """The slot of the first step."""
        return self.slots - self.steps if self.front else 0

    @property
    def trailing(self) -> int:
        """F-points after the last C-point: the steps of the incomplete interval, 0 if there is none."""
        return 0 if self.ragged else self.steps % self.factor

    @property
    def last_interval(self) -> int:
        """The interval in which the state's run through the level ends: the incomplete one if there is one."""
        return -(-self.steps // self.factor) - 1

    @property
    def first_interval(self) -> int:
        """The interval in which the adjoint's run through the level ends: the incomplete one if there is one."""
        return self.first // self.factor

    def slot_mask(self, index: Index) -> Any:
        """Which of this device's slots hold a step: (share, factor) booleans, None if all do."""
        # None rather than all True: a select over every state costs as much as a cheap layer.
        if self.slots == self.steps:
            return None
        slot = index * (self.share * self.factor) + jnp.arange(self.share * self.factor, dtype=jnp.int32)
        inside = (slot >= self.first) & (slot < self.first + self.steps)
        return inside.reshape(self.share, self.factor)

    def complete_mask(self, index: Index) -> Any:
        """Which of this device's intervals lead to a C-point: (share,), None if all do."""
        mask = self.slot_mask(index)
        if mask is None:
            return None
        # A ragged level's incomplete interval has a coarse step, and so a C-point, of its own.
        return jnp.any(mask, axis=1) if self.ragged else jnp.all(mask, axis=1)


def cut(
    counts: Sequence[int],
    factors: Sequence[int],
    devices: int = 1,
    *,
    front: bool = False,
    ragged: bool = False,
    gather: bool = True,
) -> tuple[Level, ...]:
    """Levels of given numbers of steps and slots per interval, cut into shares for the devices.

    The finest level is spread over the devices. A coarser one stays where it is as long as its intervals fall into the
    finer level's parts; else some neighbouring devices gather theirs and have a larger part in common, or every device
    gathers and solves all of it: whatever means fewer steps and messages, see `_effort`.
    Without `gather` all levels are cut like the finest.

    Args:
        counts: N_l of every level, the finest first.
        factors: m_l of every level.
        devices: over how many devices the finest level is spread, >= 1.
        front: whether padding goes before the first step (the adjoint) rather than after the last.
        ragged: whether incomplete intervals too lead to a C-point.
        gather: whether coarse levels may be gathered, which puts all their data on every device.

    Raises:
        ValueError: more devices than intervals.
    """
    intervals = -(-counts[0] // factors[0])
    if intervals < devices:
        raise ValueError(
            f"{counts[0]} layers in intervals of {factors[0]} are {intervals} intervals, fewer than the {devices} "
            f"devices of the backend; use at most {intervals} devices or a smaller coarsening factor."
        )
    share = -(-intervals // devices)
    if gather or devices == 1:
        # Of equal efforts `min` takes the first: candidates that cut most come first.
        parts = min(_candidates(share, counts, factors, devices), key=partial(_effort, factors))
    else:
        parts = _spread(share, factors, devices)
        # A device's coarsest level is one interval, with a slot for each of its intervals above.
        factors = [*factors[:-1], parts[-2][1]] if len(parts) > 1 else factors
    strides = [1, *itertools.accumulate(factors, operator.mul)]
    # There is one stride more than levels: that of a level below the coarsest, which `zip` leaves out.
    return tuple(
        Level(n, m, share, on, stride, front, ragged)
        for n, m, (on, share), stride in zip(counts, factors, parts, strides, strict=False)
    )


Parts = list[tuple[int, int]]  # of every level: into how many parts it is cut, and intervals in each

MESSAGE = 2  # steps that take about as long as a message
SWEEPS = 3  # through a coarse level in a cycle: FCF-relaxation, and that which fills in the F-points
MESSAGES = 4  # of a coarse level in a cycle: one for each sweep, and what is gathered for it


def _spread(share: int, factors: Sequence[int], devices: int) -> Parts:
    """All levels on all devices, the coarsest in one interval each; the share is rounded up as far as that takes."""
    share = math.prod(factors[1:-1]) * -(-share // math.prod(factors[1:-1]))
    shares = itertools.accumulate(factors[1:-1], operator.floordiv, initial=share)
    return [(devices, own) for own in shares] + [(devices, 1)] * (len(factors) > 1)


def _effort(factors: Sequence[int], parts: Parts) -> int:
    """What a cycle asks of every device, in steps one after another."""
    steps = factors[0] * parts[0][1] + parts[-1][1] * factors[-1]
    for m, (on, share) in list(zip(factors, parts, strict=True))[1:-1]:
        steps += SWEEPS * share * m + (MESSAGES * MESSAGE if on > 1 else 0)
    return steps


def _candidates(share: int, counts: Sequence[int], factors: Sequence[int], devices: int) -> Iterator[Parts]:
    """Ways to cut the levels, first those that cut most; each level is cut until one is gathered by every device.

    Level l + 1 can be cut into D parts of whole intervals, D a divisor of the parts of level l, if m_{l+1} divides the
    share of level l times the number of parts merged. A share of the finest level is rounded up for that by an eighth
    at most. The coarsest level is always gathered, since it is solved one step after another.
    """

    def gathered(depth: int) -> Parts:
        return [(1, -(-n // m)) for n, m in list(zip(counts, factors, strict=True))[depth:]]

    for unit in sorted({math.prod(factors[1:depth]) for depth in range(1, max(2, len(factors)))}, reverse=True):
        # More padding than an eighth would cost more in sweeps than the messages it saves.
        rounded = -(-share // unit) * unit
        if rounded > share + share // 8:
            continue
        parts = [(devices, rounded)]
        yield parts + gathered(1)
        for depth, m in list(enumerate(factors))[1:-1]:
            on, own = parts[-1]
            merged = m // math.gcd(m, own)
            if on % merged or on == merged:
                break
            parts = [*parts, (on // merged, own * merged // m)]
            yield parts + gathered(depth + 1)


def lay_out(x: Arrays, level: Level) -> Any:
    """Give arrays over the layers (leading axis N) the slots of a level, repeating the edge layer as padding."""
    return fit(x, level.slots, level.front)


def coarse_grid_data(x: Arrays, fine: Level, coarse: Level, backend: Any) -> Any:
    """From one entry per interval of a level to one per slot of the next, gathered where that has fewer parts."""
    if coarse.devices < fine.devices:
        with on_level(fine.stride):
            x = backend.neighbours(fine.devices // coarse.devices).all_gather(x)
    return x if coarse.devices > 1 else fit(x, coarse.slots, coarse.front)


def fine_grid_data(x: Arrays, fine: Level, coarse: Level, backend: Any) -> Any:
    """Undo `coarse_grid_data`."""
    if coarse.devices == 1:
        x = fit(x, fine.intervals, fine.front)
    if coarse.devices == fine.devices:
        return x
    return own_block(x, fine.share, backend.neighbours(fine.devices // coarse.devices))


def own_block(x: Arrays, size: int, backend: Any) -> Any:
    """This device's block of whole arrays."""
    return jax.tree.map(lambda y: jax.lax.dynamic_slice_in_dim(y, backend.index() * size, size), x)


def relayout(x: Arrays, source: Level, target: Level, backend: Any) -> Any:
    """Move one entry per slot from one partition of the same layers to another.

    Partitions of the same length differ by a cyclic shift; else the whole is gathered and cut anew.
    """
    # State and adjoint differ by where the padding is: neighbours exchange a few slots, nobody gathers.
    if source.slots == target.slots and source.devices == target.devices:
        by = target.first - source.first
        return x if by == 0 else backend.shift(x, by, None)

    def one(y: Arrays) -> Any:
        return fit(y[source.first : source.first + source.steps], target.slots, target.front)

    whole = jax.tree.map(one, backend.all_gather(x))
    return own_block(whole, target.share * target.factor, backend) if target.devices > 1 else whole
