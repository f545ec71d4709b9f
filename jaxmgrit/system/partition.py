"""The grids: levels, intervals, C- and F-points, and how they are cut into equal shares for the devices.

Level l has N_l steps in intervals of m_l; a *slot* holds one step. All slots of a level form one leading axis,
devices x
share x factor long, in the order of the layers, also for the adjoint, which merely runs through it backwards. Where
N_l does not fill the slots, the rest is padding: after the last step for the state, before the first for the adjoint
(whose C-points count from the end). Padded slots pass states through unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import fit
from jaxmgrit._scopes import on_level


@dataclass(frozen=True)
class Level:
    """One grid: `steps` steps in `devices * share` intervals of `factor` slots each.

    Attributes:
        steps: N_l.
        factor: m_l, slots per interval; on the coarsest of several levels all steps are one interval.
        share: intervals per device.
        devices: over how many devices the level is spread; 1 means that every device holds (and solves) all of it.
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

    def slot_mask(self, index: Any) -> Any:
        """Which of this device's slots hold a step: (share, factor) booleans, None if all do."""
        if self.slots == self.steps:
            return None
        slot = index * (self.share * self.factor) + jnp.arange(self.share * self.factor, dtype=jnp.int32)
        inside = (slot >= self.first) & (slot < self.first + self.steps)
        return inside.reshape(self.share, self.factor)

    def complete_mask(self, index: Any) -> Any:
        """Which of this device's intervals lead to a C-point: (share,), None if all do."""
        mask = self.slot_mask(index)
        if mask is None:
            return None
        return jnp.any(mask, axis=1) if self.ragged else jnp.all(mask, axis=1)


def cut(
    counts: Sequence[int], factors: Sequence[int], devices: int = 1, *, front: bool = False, ragged: bool = False
) -> tuple[Level, ...]:
    """Levels of given numbers of steps and slots per interval, cut into shares for the devices.

    The finest level is spread over the devices; a coarser one too as long as its intervals fall into the finer level's
    shares, and else every device gathers and solves all of it.

    Args:
        counts: N_l of every level, the finest first.
        factors: m_l of every level.
        devices: over how many devices the finest level is spread, >= 1.
        front: whether padding goes before the first step (the adjoint) rather than after the last.
        ragged: whether incomplete intervals too lead to a C-point.

    Raises:
        ValueError: more devices than intervals.
    """
    intervals = -(-counts[0] // factors[0])
    if intervals < devices:
        raise ValueError(
            f"{counts[0]} layers in intervals of {factors[0]} are {intervals} intervals, fewer than the {devices} "
            f"devices of the backend; use at most {intervals} devices or a smaller coarsening factor."
        )
    share, spread = _share(-(-intervals // devices), factors, devices)
    levels = []
    for depth, (n, m) in enumerate(zip(counts, factors, strict=True)):
        on = devices if depth < spread else 1
        if depth > 0:
            share = share // m if depth < spread else -(-n // m)
        levels.append(Level(n, m, share, on, math.prod(factors[:depth]), front, ragged))
    return tuple(levels)


def _share(share: int, factors: Sequence[int], devices: int) -> tuple[int, int]:
    """Intervals per device on the finest level, and how many levels are spread over the devices.

    Level l + 1 can be spread without moving data if m_{l+1} divides the share of level l. A share is rounded up for
    that by an eighth at most; the coarsest level is always gathered, since it is solved one step after another.
    """
    if devices == 1:
        return share, 1
    for spread in range(len(factors) - 1, 1, -1):
        unit = math.prod(factors[1:spread])
        rounded = -(-share // unit) * unit
        if rounded <= share + share // 8:
            return rounded, spread
    return share, 1


def lay_out(x: Any, level: Level) -> Any:
    """Give arrays over the layers (leading axis N) the slots of a level, repeating the edge layer as padding."""
    return fit(x, level.slots, level.front)


def coarse_grid_data(x: Any, fine: Level, coarse: Level, backend: Any) -> Any:
    """From one entry per interval of a level to one per slot of the next, gathered if that is not spread."""
    if coarse.devices == fine.devices:
        return x if coarse.devices > 1 else fit(x, coarse.slots, coarse.front)
    with on_level(fine.stride):
        return fit(backend.all_gather(x), coarse.slots, coarse.front)


def fine_grid_data(x: Any, fine: Level, coarse: Level, backend: Any) -> Any:
    """Undo `coarse_grid_data`."""
    if coarse.devices == fine.devices and coarse.devices > 1:
        return x
    whole = fit(x, fine.intervals, fine.front)
    return own_block(whole, fine.share, backend) if fine.devices > 1 else whole


def own_block(x: Any, size: int, backend: Any) -> Any:
    """This device's block of whole arrays."""
    return jax.tree.map(lambda y: jax.lax.dynamic_slice_in_dim(y, backend.index() * size, size), x)


def relayout(x: Any, source: Level, target: Level, backend: Any) -> Any:
    """Move one entry per slot from one partition of the same layers to another.

    Partitions of the same length differ by a cyclic shift; else the whole is gathered and cut anew.
    """
    if source.slots == target.slots and source.devices == target.devices:
        by = target.first - source.first
        return x if by == 0 else backend.shift(x, by, None)

    def one(y: Any) -> Any:
        return fit(y[source.first : source.first + source.steps], target.slots, target.front)

    whole = jax.tree.map(one, backend.all_gather(x))
    return own_block(whole, target.share * target.factor, backend) if target.devices > 1 else whole
