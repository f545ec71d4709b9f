"""Arithmetic on pytrees of arrays, and the split into differentiable leaves and others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Mask, State

PyTree = Any


def is_inexact(x: Arrays) -> bool:
    """Whether a leaf is floating point or complex: what can be differentiated."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def split(tree: Arrays) -> tuple[PyTree, PyTree]:
    """Split into differentiable leaves and the others; the absent leaves of each half are None."""
    # None is a pytree without leaves: derivatives and maps over one half do not see the other's.
    flags = jax.tree.map(is_inexact, tree)
    differentiable = jax.tree.map(lambda x, keep: x if keep else None, tree, flags)
    others = jax.tree.map(lambda x, keep: None if keep else x, tree, flags)
    return differentiable, others


def merge(differentiable: Arrays, others: Arrays) -> PyTree:
    """Undo `split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, differentiable, others, is_leaf=lambda x: x is None)


def zero_cotangent(x: Arrays) -> np.ndarray:
    """JAX's cotangent of an integer or key leaf: zeros of dtype float0."""
    return np.zeros(jnp.shape(x), jax.dtypes.float0)


def add(a: Arrays, b: Arrays) -> PyTree:
    """Leafwise a + b."""
    return jax.tree.map(jnp.add, a, b)


def subtract(a: Arrays, b: Arrays) -> PyTree:
    """Leafwise a - b."""
    return jax.tree.map(jnp.subtract, a, b)


def where(mask: Mask, a: Arrays, b: Arrays) -> PyTree:
    """Leafwise selection by a mask over the leading axes of every leaf; `mask=None` selects a."""
    if mask is None:
        return a

    # Axes of length 1 by hand, since broadcasting would match the last axes instead of the first.
    def select(x: Arrays, y: Arrays) -> Any:
        return jnp.where(jnp.reshape(mask, jnp.shape(mask) + (1,) * (x.ndim - jnp.ndim(mask))), x, y)

    return jax.tree.map(select, a, b)


def fold(tree: Arrays, factor: int) -> PyTree:
    """Reshape a leading axis (a factor) into (a, factor)."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // factor, factor, *x.shape[1:]), tree)


def unfold(tree: Arrays) -> PyTree:
    """Reshape leading axes (a, factor) into one."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)


def fit(tree: Arrays, size: int, front: bool) -> PyTree:
    """Give the leading axis `size` entries, repeating the edge entry or cutting, at the front or at the end."""

    def one(x: Arrays) -> Any:
        extra = size - x.shape[0]
        if extra == 0:
            return x
        if extra < 0:
            return x[-size:] if front else x[:size]
        # Padding is computed like any layer: a copy of a real one can be, where zeros might divide by zero.
        edge = x[:1] if front else x[-1:]
        padding = jnp.broadcast_to(edge, (extra, *x.shape[1:]))
        return jnp.concatenate([padding, x] if front else [x, padding])

    return jax.tree.map(one, tree)


def repeat(tree: Arrays, count: int) -> PyTree:
    """Stack `count` copies of a tree along a new leading axis."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), tree)


def copies(tree: Arrays) -> PyTree:
    """Copies of all leaves, which share no buffer with anything."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def strong(tree: Arrays) -> PyTree:
    """Arrays of definite (not weak) dtype, so that no dtype changes inside a loop."""
    return jax.tree.map(_strong, tree)


def _strong(x: Arrays) -> jax.Array:
    # Keys have no weak dtype, and do not say so.
    definite = isinstance(x, jax.Array) and not getattr(x, "weak_type", False)
    return x if definite else jnp.asarray(x, jnp.result_type(x))


def euclidean_norm(state: State) -> jax.Array:
    """The default norm of a state: Euclidean over all leaves, batch included, undivided; float32 at least.

    Entries are scaled by a power of two before they are squared, so that only a norm that is itself too large (or too
    small) for the dtype over- or underflows.
    """
    dtype = norm_dtype(state)
    leaves = (jnp.abs(x) if jnp.iscomplexobj(x) else x for x in jax.tree.leaves(state))
    return hypot(jnp.stack([hypot(x.astype(dtype)) for x in leaves]))


def hypot(values: jax.Array) -> jax.Array:
    """Sqrt of the sum of squares of real numbers; NaN or infinite where they are. Its derivative at 0 is 0."""
    # Both extremes rather than absolute values, which would be one more array of the state's size.
    largest = jnp.maximum(jnp.max(values, initial=0.0), -jnp.min(values, initial=0.0))
    # A power of two, since dividing by it changes no digit; one less than the exponent keeps it finite.
    _, exponent = jnp.frexp(jax.lax.stop_gradient(largest))
    scale = jnp.ldexp(jnp.ones((), values.dtype), exponent - 1)
    squares = jnp.sum((values / scale) ** 2)
    # The root's derivative at 0 is infinite, and 0 times that would be NaN in the gradient of a converged solve.
    positive = squares > 0
    return jnp.where(positive, scale * jnp.sqrt(jnp.where(positive, squares, 1)), squares)


def norm_dtype(state: State) -> Any:
    """The real dtype of a state's norms: its own, float32 at least."""
    dtype = real_dtype(state)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def size_in_bytes(tree: Arrays) -> int:
    """Bytes of all leaves, to choose a program by; an axis of open length (`jax.export`) counts as one entry."""

    def one(x: Any) -> int:
        known = (n for n in x.shape if isinstance(n, int))
        return math.prod(known) * int(x.dtype.itemsize)

    return sum(map(one, jax.tree.leaves(tree)))


def all_finite(tree: Arrays) -> jax.Array:
    """Whether every entry of every leaf is finite."""
    flags = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(flags)) if flags else jnp.asarray(True)


def real_dtype(state: State) -> Any:
    """The real dtype that norms and step sizes of this state have; JAX's default where nothing is floating point."""
    # Leaves may differ in dtype, also where the user has set strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(
            *[jnp.result_type(x) for x in jax.tree.leaves(state) if is_inexact(x)] or [jnp.result_type(float)]
        )
    return jnp.finfo(dtype).dtype


def varying_axes(tree: PyTree) -> frozenset[Any]:
    """The mesh axes of a surrounding `jax.shard_map` over which any leaf differs; none outside."""
    axes: frozenset[Any] = frozenset()
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, jax.Array):
            continue
        aval = jax.typeof(leaf)
        # Versions of JAX differ in where they say so.
        kind = getattr(aval, "manual_axis_type", None)
        axes |= getattr(aval, "vma", frozenset()) if kind is None else kind.varying
    return axes


def vary(tree: PyTree, axes: frozenset[Any]) -> PyTree:
    """The same values, of the type of those that differ over mesh axes: as loops want what they carry."""

    def one(x: Any) -> Any:
        missing = tuple(sorted(axes - varying_axes(x), key=str))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(one, tree)
