"""Layers sharded over an axis of a `jax.sharding.Mesh`: several devices of one process, or of many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxmgrit.backend.base import (
    REPLICATED,
    SHARDED,
    SHARDED_STATES,
    STATE,
    WHOLE_STATES,
    PyTree,
    check_parts,
    shift_blocks,
    together,
)

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays

_MAKE = "jax.make_mesh((devices,), ('layers',), axis_types=(jax.sharding.AxisType.Auto,))"


@dataclass(frozen=True)
class Mesh:
    """Intervals of layers sharded over one axis of a device mesh.

    Args:
        mesh: a `jax.sharding.Mesh`, for instance
            `jax.make_mesh((4,), ("layers",), axis_types=(jax.sharding.AxisType.Auto,))`. Its other axes, if any, stay
            with XLA's automatic partitioning.
        axis: the name of the axis the layers are spread over.
        data_axis: the name of the axis the batch is spread over, or None. The samples are then the leading axis of x, y
            and every leaf of the state; loss and running cost must be means over the samples, `MGRIT(norm=...)` the
            square root of a sum over them.

    Raises:
        ValueError: the mesh has no axis of that name, or axes that are Explicit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> theta, u0 = 0.1 * jnp.ones((64, 4, 4)), jnp.ones((2, 4))
        >>> devices = jax.devices()[:1]  # or all of them
        >>> auto = (jax.sharding.AxisType.Auto,)
        >>> mesh = jax.make_mesh((len(devices),), ("layers",), axis_types=auto, devices=devices)
        >>> jm.solve(step, theta, u0, h=1 / 64, backend=jm.Mesh(mesh)).u_final.shape
        (2, 4)
    """

    mesh: jax.sharding.Mesh
    axis: str = "layers"
    data_axis: str | None = None
    _part: tuple[int, int] | None = field(default=None, repr=False, kw_only=True)
    """(stride, count) of a part of the axis: so many devices, so far apart; see `every` and `neighbours`."""

    def __post_init__(self) -> None:
        for name in ("axis", "data_axis"):
            given = getattr(self, name)
            if given not in self.mesh.axis_names and not (name == "data_axis" and given is None):
                raise ValueError(
                    f"Mesh: {name}={given!r} is not an axis of the mesh, which has {tuple(self.mesh.axis_names)}; "
                    f"name one of these, or make the mesh with {_MAKE}."
                )
        if explicit := [
            name for name, kind in zip(self.mesh.axis_names, self.mesh.axis_types, strict=True) if kind != AxisType.Auto
        ]:
            raise ValueError(
                f"Mesh: the axes {explicit} of the mesh are not Auto, as XLA's partitioning needs them (jax.make_mesh "
                f"makes Explicit ones unless told otherwise); name the axis_types: {_MAKE}."
            )
        if self.axis == self.data_axis:
            raise ValueError(
                f"Mesh: axis and data_axis are both {self.axis!r}; give the batch an axis of its own: "
                "jax.make_mesh((2, 4), ('data', 'layers'), axis_types=(jax.sharding.AxisType.Auto,) * 2)."
            )

    @property
    def size(self) -> int:
        """Number of devices along the axis."""
        return self.mesh.shape[self.axis] if self._part is None else self._part[1]

    @property
    def _stride(self) -> int:
        return 1 if self._part is None else self._part[0]

    def every(self, stride: int) -> Mesh:
        """See `Backend.every`."""
        return self if stride == 1 else replace(self, _part=(self._stride * stride, self.size // stride))

    def neighbours(self, count: int) -> Mesh:
        """See `Backend.neighbours`."""
        return self if count == self.size else replace(self, _part=(self._stride, count))

    def _members(self) -> list[list[int]]:
        """The devices of each part, in order."""
        stride, count = self._stride, self.size
        # i // stride % count is a device's place in its part, as in `index`: parts begin at place 0.
        starts = [i for i in range(self.mesh.shape[self.axis]) if i // stride % count == 0]
        return [[start + k * stride for k in range(count)] for start in starts]

    @property
    def data_size(self) -> int:
        """Number of devices along the data axis."""
        return 1 if self.data_axis is None else self.mesh.shape[self.data_axis]

    def undivided(self) -> Mesh:
        """Without the data axis."""
        return replace(self, data_axis=None)

    @property
    def platform(self) -> str:
        """The platform of the mesh's devices."""
        return self.mesh.devices.flat[0].platform

    def index(self) -> jax.Array:
        """This device's position along the axis."""
        position = jax.lax.axis_index(self.axis)
        return position if self._part is None else position // self._stride % self.size

    def _permute(self, block: jax.Array, hop: int) -> jax.Array:
        # All the way round is no message.
        if hop % self.size == 0:
            return block
        pairs = [(part[i], part[(i + hop) % self.size]) for part in self._members() for i in range(self.size)]
        return jax.lax.ppermute(block, self.axis, pairs)

    def shift(self, x: Arrays, by: int, fill: Arrays | None) -> PyTree:
        """See `Backend.shift`: one or two `ppermute`s."""
        return shift_blocks(x, by, fill, self.index(), self.size, self._permute)

    def all_gather(self, x: Arrays) -> PyTree:
        """See `Backend.all_gather`."""
        parts = None if self._part is None else self._members()
        return together(lambda y: jax.lax.all_gather(y, self.axis, axis_index_groups=parts, tiled=True), x, axis=1)

    def all_sum(self, x: Arrays) -> PyTree:
        """See `Backend.all_sum`."""
        parts = None if self._part is None else self._members()
        return together(lambda y: jax.lax.psum(y, self.axis, axis_index_groups=parts), x, axis=0)

    def data_gather(self, x: Arrays) -> PyTree:
        """See `Backend.data_gather`."""
        if self.data_axis is None:
            return jax.tree.map(lambda y: y[None], x)
        return jax.tree.map(lambda y: jax.lax.all_gather(y, self.data_axis), x)

    def data_sum(self, x: Arrays) -> PyTree:
        """See `Backend.data_sum`."""
        return x if self.data_axis is None else together(lambda y: jax.lax.psum(y, self.data_axis), x, axis=0)

    @property
    def blocks(self) -> int:
        """One: outside `lift` arrays are whole."""
        return 1

    @property
    def block(self) -> int:
        """The only one."""
        return 0

    @property
    def batch_parts(self) -> int:
        """One: outside `lift` the batch is whole."""
        return 1

    def total(self, x: Arrays) -> PyTree:
        """The value itself: it was computed from whole arrays."""
        return x

    def data_total(self, x: Arrays) -> PyTree:
        """The value itself: it was computed from whole states."""
        return x

    def split_batch(self, x: Arrays, axis: int = 0) -> PyTree:
        """Shard the samples over the data axis."""
        if self.data_axis is None:
            return x
        check_parts(x, axis, self.data_size)
        spec = PartitionSpec(*[None] * axis, self.data_axis)
        return jax.tree.map(lambda y: self._place(y, spec), x)

    def join_batch(self, x: Arrays, axis: int = 0) -> PyTree:
        """The arrays themselves: they are whole."""
        return x

    def _spec(self, kind: Any) -> PartitionSpec:
        layers, data = (self.axis,), () if self.data_axis is None else (self.data_axis,)
        # By axis: intervals come first, where there are any, and the samples behind them.
        axes = {
            SHARDED: layers,
            REPLICATED: (),
            SHARDED_STATES: layers + data,
            WHOLE_STATES: (None, *data),
            STATE: data,
        }
        return PartitionSpec(*axes[kind])

    def lift(self, f: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """`jax.shard_map` over the axes."""

        def specs(tree: Arrays) -> Any:
            return jax.tree.map(self._spec, tree)

        # We own the adjoint; replication is by construction, so JAX need not (and must not) insert sums for it.
        return jax.jit(
            jax.shard_map(
                f,
                mesh=self.mesh,
                in_specs=specs(in_specs),
                out_specs=specs(out_specs),
                axis_names={self.axis} if self.data_axis is None else {self.axis, self.data_axis},
                check_vma=False,
            )
        )

    def scatter(self, x: Arrays, axis: int = 0) -> PyTree:
        """Shard an axis; one that the devices do not divide stays whole."""

        def one(y: Arrays) -> Any:
            even = y.ndim > axis and y.shape[axis] % self.size == 0
            return self._place(y, PartitionSpec(*[None] * axis, self.axis) if even else PartitionSpec())

        return jax.tree.map(one, x)

    def scatter_states(self, x: Arrays) -> PyTree:
        """Shard the intervals, and the samples over the data axis."""
        return jax.tree.map(lambda y: self._place(y, self._spec(SHARDED_STATES)), x)

    def keep(self, x: Arrays, axis: int = 0) -> PyTree:
        """`scatter`, which tells XLA to leave them there."""
        return self.scatter(x, axis)

    def keep_states(self, x: Arrays) -> PyTree:
        """`scatter_states`, which tells XLA to leave them there."""
        return self.scatter_states(x)

    def agree(self, decision: jax.Array) -> jax.Array:
        """The decision itself: there is one program."""
        return decision

    def agreed(self, value: float) -> float:
        """The first process's number."""
        return float(broadcast_one_to_all(np.float64(value))) if self.mesh.is_multi_process else value

    def replicate(self, x: Arrays) -> PyTree:
        """Give whole arrays to all devices."""
        return jax.tree.map(lambda y: self._place(y, PartitionSpec()), x)

    def _place(self, x: Arrays, spec: PartitionSpec) -> jax.Array:
        sharding = NamedSharding(self.mesh, spec)
        # Inside a jitted function placement is a constraint on XLA, outside it is a copy.
        if isinstance(x, jax.core.Tracer):
            return jax.lax.with_sharding_constraint(x, sharding)
        return jax.device_put(x, sharding)

    def gather(self, x: Arrays) -> PyTree:
        """Whole arrays: as they are where one process sees all devices, else copied to all of them."""
        return self.replicate(x) if self.mesh.is_multi_process else x
