"""The full approximation scheme between two levels: residual, coarse right-hand side, transfer of values.

With u^{jm} the C-points, v^j = u^{jm} their injection and E^j = Phi(u^{jm-1}) + g^{jm} what the intervals arrive at:
residual r = E - v, right-hand side g_{l+1}^j = r^j + v^j - Phi_{l+1}(v^{j-1}) = E^j - Phi_{l+1}(v^{j-1}), and the
correction u^{jm} += u_{l+1}^j - v^j replaces C-points by the coarse solution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import fold, subtract, unfold, where
from jaxmgrit.system.grid import Grid, run_interval
from jaxmgrit.system.partition import coarse_grid_data, fine_grid_data

if TYPE_CHECKING:
    from jaxmgrit._types import Layers, Mask, State

PyTree = Any
Norm = Callable[[PyTree], Any]
Measure = Callable[[PyTree, PyTree], PyTree]


def own_sum(grid: Grid, squares: jax.Array) -> jax.Array:
    """The sum over this device's C-points."""
    mask = grid.level.complete_mask(grid.backend.index())
    return jnp.sum(squares if mask is None else jnp.where(mask, squares, jnp.zeros_like(squares)))


def coarse_rhs(
    fine: Grid, coarse: Grid, ends: State, rhs: State, initial: State, measure: Measure | None = None
) -> tuple[PyTree, PyTree]:
    """F-relaxation, and while its results are in the cache the FAS right-hand side E^j - Phi_{l+1}(v^{j-1}).

    Returns:
        One entry per interval of the fine level; and `measure(arrived, end)` of each, where that is given.
    """
    blocks = unfold(coarse.blocks)
    mask = None if coarse.mask is None else unfold(coarse.mask)
    # One coarse slot per fine interval, leaves (share, ...), on the device that has the interval.
    slots = fine_grid_data((blocks, mask), fine.level, coarse.level, fine.backend)

    # v^{j-1} is what the fine interval starts from, so that all coarse steps are made in the sweep, at once.
    def one(
        start: State, end: State, block: Layers, mask: Mask, source: State, coarse_slot: PyTree
    ) -> tuple[PyTree, PyTree]:
        slot, inside = coarse_slot
        arrived = run_interval(fine, start, block, mask, source)[0]
        # Where there is no coarse step the coarse level passes values on, and its right-hand side must be neutral.
        made = subtract(arrived, where(inside, coarse.advance(slot, start), start))
        return made, None if measure is None else measure(arrived, end)

    result: tuple[PyTree, PyTree] = fine.sweep(one, ends, initial, ends, fine.blocks, fine.mask, rhs, slots)
    return result


def restrict(fine: Grid, coarse: Grid, values: State) -> PyTree:
    """One entry per fine interval -> one per coarse slot, leaves (share, factor, ...)."""
    return fold(coarse_grid_data(values, fine.level, coarse.level, fine.backend), coarse.level.factor)


def correct(fine: Grid, coarse: Grid, values: State) -> PyTree:
    """The coarse solution at all coarse slots, leaves (share * factor, ...), becomes the fine level's C-points."""
    return fine_grid_data(values, fine.level, coarse.level, fine.backend)
