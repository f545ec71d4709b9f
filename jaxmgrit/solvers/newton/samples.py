"""A state read as independent samples: rows of real components, between which Jacobians are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmgrit._pytree import PyTree, real_dtype

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, State

Jacobian = Literal["full", "channels"]


@dataclass(frozen=True)
class Samples:
    """How a state becomes rows (samples, components) of real numbers, and back.

    With "full" Jacobians a row is all of one sample; with "channels" it is one position of all leaves, and the samples
    are the positions. A complex number is two components.

    Attributes:
        leaves: shapes and dtypes of the state's leaves.
        tree: the state's structure.
        axis: the samples' axis of every leaf; None: the whole state is one sample.
        positions: whether the rows are positions.
    """

    leaves: tuple[Any, ...]
    tree: Any
    axis: int | None
    positions: bool

    @property
    def count(self) -> int:
        """How many rows there are."""
        first = self.leaves[0]
        if self.positions:
            return math.prod(first.shape)
        return 1 if self.axis is None else first.shape[self.axis]

    @property
    def size(self) -> int:
        """Real components of a row: d."""
        return sum(self._widths())

    @property
    def dtype(self) -> Any:
        """The real dtype of rows, float32 at least."""
        dtype = real_dtype(self.leaves)
        return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)

    def _widths(self) -> list[int]:
        # An empty batch has no rows to divide by.
        rows = max(1, self.count)
        return [math.prod(x.shape) // rows * (1 + jnp.issubdtype(x.dtype, jnp.complexfloating)) for x in self.leaves]

    def ravel(self, state: State) -> jax.Array:
        """The rows of a state: (samples, components)."""

        def rows(x: jax.Array) -> jax.Array:
            flat = x if self.positions or self.axis is None else jnp.moveaxis(x, self.axis, 0)
            flat = flat.reshape(self.count, -1)
            parts = [flat.real, flat.imag] if jnp.iscomplexobj(flat) else [flat]
            return jnp.concatenate([part.astype(self.dtype) for part in parts], axis=1)

        return jnp.concatenate([rows(x) for x in jax.tree.leaves(state)], axis=1)

    def unravel(self, rows: jax.Array) -> PyTree:
        """Undo `ravel`."""
        ends = np.cumsum(self._widths())[:-1]
        parts = jnp.split(rows, ends, axis=1)
        return jax.tree.unflatten(self.tree, [self._leaf(x, part) for x, part in zip(self.leaves, parts, strict=True)])

    def _leaf(self, like: Arrays, part: jax.Array) -> jax.Array:
        if jnp.issubdtype(like.dtype, jnp.complexfloating):
            part = jax.lax.complex(*jnp.split(part, 2, axis=1))
        part = part.astype(like.dtype)
        if self.positions or self.axis is None:
            return part.reshape(like.shape)
        axis = self.axis % len(like.shape)
        moved = like.shape[axis : axis + 1] + like.shape[:axis] + like.shape[axis + 1 :]
        return jnp.moveaxis(part.reshape(moved), 0, axis)

    def basis(self) -> PyTree:
        """Tangents, leading axis d: the i-th has a 1 in component i of every row."""
        # The same tangent in every sample: where samples are independent, d of them give the Jacobians of all.
        eye = jnp.eye(self.size, dtype=self.dtype)[:, None]
        return jax.vmap(self.unravel)(jnp.broadcast_to(eye, (self.size, self.count, self.size)))

    def transpose(self, jacobian: jax.Array) -> jax.Array:
        """The adjoint's Jacobian from the state's, (..., d, samples, d) with the input's component first."""
        # JAX's adjoint of x + iy is (dL/dx) - i (dL/dy).
        widths = zip(self.leaves, self._widths(), strict=True)
        halves = [(w // 2, w // 2) if jnp.issubdtype(x.dtype, jnp.complexfloating) else (w, 0) for x, w in widths]
        each = np.concatenate([np.repeat((1.0, -1.0), half) for half in halves])
        signs = jnp.asarray(each, jacobian.dtype)
        return jnp.einsum("...isk,i,k->...ksi", jacobian, signs, signs)

    def signs(self) -> jax.Array:
        """Random signs in the place of rows: a tangent in which no two samples are alike."""
        # By NumPy with a fixed seed: a constant of the program, alike on all devices, that takes no key from the user.
        signs = 2 * np.random.default_rng(0).integers(2, size=(self.count, self.size), dtype=np.int8) - 1
        return jnp.asarray(signs).astype(self.dtype)


def samples_of(state: State, jacobian: Jacobian, batch_axis: int | None) -> Samples:
    """How to read states like this one (shapes will do).

    Raises:
        ValueError: leaves that have no such axis or not the same number of samples; an axis of open length; for
            "channels", leaves of different shapes.
    """
    leaves, tree = jax.tree.flatten(state)
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)
    listed = ", ".join(str(x.shape) for x in shapes)
    if not all(isinstance(n, int) for x in shapes for n in x.shape):
        raise ValueError(
            f"Newton: the state's leaves have shapes {listed}, but how many samples there are must be known (Jacobians "
            "are tried on signs drawn for each): export with numbers, or take solver=jm.MGRIT(...) or jm.Sequential()."
        )
    if jacobian == "channels":
        if len({x.shape for x in shapes}) > 1:
            raise ValueError(
                f"Newton: jacobian='channels' is for leaves of one shape that interact at equal positions, but the "
                f"state's leaves have shapes {listed}; give jacobian='full'."
            )
    elif batch_axis is not None:
        outside = [x.shape for x in shapes if not -len(x.shape) <= batch_axis < len(x.shape)]
        if outside:
            raise ValueError(
                f"Newton: batch_axis={batch_axis} is out of range for a leaf of the state of shape {outside[0]}; name "
                "the samples' axis that all leaves have, or give batch_axis=None: the whole state is one sample."
            )
        if len({x.shape[batch_axis] for x in shapes}) > 1:
            raise ValueError(
                f"Newton: along batch_axis={batch_axis} the state's leaves, of shapes {listed}, differ in their number "
                "of samples; give batch_axis=None: the whole state is one sample."
            )
    return Samples(shapes, tree, batch_axis, jacobian == "channels")
