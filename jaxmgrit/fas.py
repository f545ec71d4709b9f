"""The full approximation scheme between two levels: residual, coarse right-hand side, transfer of values.

With u^{jm} the C-points, v^j = u^{jm} their injection and E^j = Phi(u^{jm-1}) + g^{jm} what the intervals arrive at:
residual r = E - v, right-hand side g_{l+1}^j = r^j + v^j - Phi_{l+1}(v^{j-1}) = E^j - Phi_{l+1}(v^{j-1}), and the
correction
u^{jm} += u_{l+1}^j - v^j replaces C-points by the coarse solution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmgrit.hierarchy import coarse_grid_data, fine_grid_data
from jaxmgrit.pytree import fold, subtract, unfold, where
from jaxmgrit.relaxation import Grid, by_intervals

PyTree = Any
Norm = Callable[[PyTree], Any]


def c_norm(grid: Grid, values: PyTree, norm: Norm) -> jax.Array:
    """Sqrt of the sum over all C-points (and parts of the batch) of norm(value)^2."""
    norms = jax.vmap(norm)(values)
    squares = norms * norms
    mask = grid.level.complete_mask(grid.backend.index())
    squares = squares if mask is None else jnp.where(mask, squares, jnp.zeros_like(squares))
    return jnp.sqrt(grid.backend.data_sum(grid.backend.all_sum(jnp.sum(squares))))


def residual_norm(grid: Grid, arrived: PyTree, ends: PyTree, norm: Norm) -> jax.Array:
    """||r|| over the C-points."""
    return c_norm(grid, subtract(arrived, ends), norm)


def coarse_rhs(fine: Grid, coarse: Grid, arrived: PyTree, ends: PyTree, initial: PyTree) -> PyTree:
    """The FAS right-hand side, one entry per interval of the fine level: E^j - Phi_{l+1}(v^{j-1})."""
    return subtract(arrived, coarse_steps(fine, coarse, fine.starts(ends, initial)))


def coarse_steps(fine: Grid, coarse: Grid, starts: PyTree) -> PyTree:
    """One coarse step over each interval of the fine level, from its start."""
    blocks = unfold(coarse.blocks)
    mask = None if coarse.mask is None else unfold(coarse.mask)
    data, inside = fine_grid_data((blocks, mask), fine.level, coarse.level, fine.backend)

    def one(args: PyTree) -> PyTree:
        slot, start = args
        return coarse.advance(slot, start)

    return where(inside, by_intervals(one, (data, starts), fine.level.share, fine.batch), starts)


def restrict(fine: Grid, coarse: Grid, values: PyTree) -> PyTree:
    """One entry per fine interval -> one per coarse slot, leaves (share, factor, ...)."""
    return fold(coarse_grid_data(values, fine.level, coarse.level, fine.backend), coarse.level.factor)


def correct(fine: Grid, coarse: Grid, values: PyTree) -> PyTree:
    """The coarse solution at all coarse slots, leaves (share * factor, ...), becomes the fine level's C-points."""
    return fine_grid_data(values, fine.level, coarse.level, fine.backend)
