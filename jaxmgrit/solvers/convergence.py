"""Whether a solve has converged: norms that neither over- nor underflow, and residuals compared where they are.

One norm over everything hides what is small: a sample of size 1 beside one of size 1e6, a state that decays in depth.
"Converged to rounding" is therefore asked of every C-point, leaf and sample by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import PyTree, hypot, norm_dtype, subtract

if TYPE_CHECKING:
    from jaxmgrit._types import State
    from jaxmgrit.system.grid import Grid

Norm = Callable[[PyTree], Any]

# A residual of so many units in the last place of the values there is rounding: a correction adds and subtracts values
# of this size three times, and the next sweep's own rounding comes on top.
ROUNDING = 4.0


class Gauge(NamedTuple):
    """How far one interval (or all of them) is from having converged.

    Attributes:
        residual: norm of the residual.
        scale: norm of the values.
        unmet: how many slices of leaves have a residual above rounding.
    """

    residual: jax.Array
    scale: jax.Array
    unmet: jax.Array


def gauge(arrived: State, end: State, norm: Norm, batch_axis: int | None, rounding: float = ROUNDING) -> Gauge:
    """The gauge of one interval, from what it arrives at and the value held at its end.

    Residuals up to `rounding` units in the last place of the values count as rounding.
    """
    dtype, difference = norm_dtype(end), subtract(arrived, end)
    above = jax.tree.map(lambda r, x: _above_rounding(r, x, batch_axis, rounding), difference, end)
    # Counted in the norms' dtype, so that `total` can send the three as one array.
    unmet = sum((jnp.sum(x, dtype=dtype) for x in jax.tree.leaves(above)), start=jnp.zeros((), dtype))
    return Gauge(norm(difference).astype(dtype), norm(end).astype(dtype), unmet)


def _above_rounding(residual: jax.Array, value: jax.Array, batch_axis: int | None, rounding: float) -> jax.Array:
    """Of every slice along the batch axis, whether its residual is more than rounding; True where that is unknown."""
    info = jnp.finfo(value.dtype)
    size, scale = _largest(residual, batch_axis), _largest(value, batch_axis)
    # Below the normal numbers relative precision ends, and from float32 on hardware may flush to zero.
    floor = info.tiny if info.bits >= 32 else info.smallest_subnormal
    # Negated: every comparison with NaN is false, and NaN must count as above rounding.
    return ~((size <= rounding * jnp.maximum(float(info.eps) * scale, float(floor))) & jnp.isfinite(scale))


def _largest(x: jax.Array, batch_axis: int | None) -> jax.Array:
    size = jnp.abs(x).astype(norm_dtype(x))
    if batch_axis is None or x.ndim == 0:
        return jnp.max(size, initial=0.0)
    return jnp.max(size, axis=[axis for axis in range(x.ndim) if axis != batch_axis % x.ndim], initial=0.0)


def total(grid: Grid, gauges: Gauge) -> Gauge:
    """Over all C-points and parts of the batch, from those of this device's intervals, leaves (share,).

    The three travel in one message.
    """
    inside = grid.level.complete_mask(grid.backend.index())
    # Padding has residuals too; they are nobody's.
    if inside is not None:
        gauges = jax.tree.map(lambda x: jnp.where(inside, x, jnp.zeros_like(x)), gauges)
    own = jnp.stack(_combine(Gauge(*gauges)))
    by_device = grid.backend.all_gather(own[None])
    whole = jnp.stack(_combine(Gauge(*by_device.T)))
    # Parts of the batch are other samples of the same C-points, so norms add up like those of other C-points.
    if grid.backend.data_size > 1:
        whole = jnp.stack(_combine(Gauge(*grid.backend.data_gather(whole).T)))
    return Gauge(*whole)


def _combine(parts: Gauge) -> Gauge:
    # Norms of parts combine by `hypot`, since a sum of squares could over- or underflow.
    return Gauge(hypot(parts.residual), hypot(parts.scale), jnp.sum(parts.unmet))


def total_norm(grid: Grid, norms: jax.Array) -> jax.Array:
    """Sqrt of the sum over all C-points and parts of the batch of norm^2, from those of this device, (share,)."""
    return total(grid, Gauge(norms, norms, jnp.zeros_like(norms))).residual
