"""Warm values: those that belong to a batch, for all of it or by sample, and how they are known to belong to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmgrit._checks import alike, describe
from jaxmgrit.solvers.result import Result

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, State, Warm

PyTree = Any

UNKNOWN = 0
"""In place of a fingerprint: warm values that may be those of any batch."""


SAME = Result.CONVERGED.value
"""The code of warm values that there is nothing to say about."""


class Opening(NamedTuple):
    """What an iteration starts from: warm values, how right they are, and the fingerprint to remember.

    Attributes:
        warm: values by interval, for the samples of the batch.
        result: a `Result` code, (), or `SAME`.
        batch: fingerprint of the batch that the warm values kept belong to, or None.
    """

    warm: PyTree
    result: jax.Array | int
    batch: jax.Array | None


def take(warm: Warm, samples: jax.Array) -> PyTree:
    """The values of some samples, leaves (intervals, batch, ...); NaN for a sample that does not exist."""

    def one(x: jax.Array) -> jax.Array:
        # Neither clamped nor counted from the end: a sample that does not exist must show, as NaN.
        return x.at[:, samples].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)

    return jax.tree.map(one, warm)


def put(warm: Warm, samples: jax.Array, values: State) -> PyTree:
    """All values, with those of some samples replaced."""

    def one(x: jax.Array, new: jax.Array) -> jax.Array:
        # What does not exist has no place; the step's result has said NOT_FINITE, see `take`.
        return x.at[:, samples].set(new, mode="drop", wrap_negative_indices=False)

    return jax.tree.map(one, warm, values)


def repeated(samples: jax.Array) -> jax.Array:
    """Whether a sample is named twice, ().

    Raises:
        ValueError: one is, and the values are known already.
    """
    # Under `jit` nothing can be raised about values: there the caller makes a result code of it.
    if not isinstance(samples, jax.core.Tracer):
        names, counts = np.unique(np.asarray(samples), return_counts=True)
        if np.any(counts > 1):
            raise ValueError(
                f"samples names {names[counts > 1].tolist()} more than once, but every sample has one warm value; "
                "draw the samples of a step without replacement."
            )
    in_order = jnp.sort(jnp.asarray(samples))
    return jnp.any(in_order[1:] == in_order[:-1])


def check_warm(warm: Warm, u0: State) -> None:
    """Raise a ValueError unless warm values (by interval) are those of states like u0."""
    for values in warm:
        own = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), values)
        if values is not None and not alike(own, u0):
            raise ValueError(
                f"the batch gives states {describe(u0)}, but the warm values belong to states {describe(own)}: "
                "they are those of the samples given to init. Step with the same batch, name its `samples`, or start "
                "every step anew: jm.OneShot(start='cold')."
            )


def fingerprint(batch: Arrays) -> jax.Array:
    """A number by which to know a batch again, samples in the same order: uint32, never `UNKNOWN`.

    Sums modulo 2^32, which no partition over devices changes; two batches share it once in 4e9.
    """
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(batch):
        for words in _words(jnp.asarray(leaf)):
            # Scrambled with their place, so that neither order nor a constant added to all goes unnoticed.
            mixed = _scrambled(words ^ _scrambled(_places(words.shape)))
            # Scrambled from leaf to leaf, so that their order counts; + 1, since 0 scrambles to itself.
            total = _scrambled(total + np.uint32(1)) + jnp.sum(mixed, dtype=jnp.uint32)
    return jnp.where(total == UNKNOWN, jnp.ones_like(total), total)


def _words(x: jax.Array) -> list[jax.Array]:
    """An array's bits, as arrays of 32-bit words."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if jnp.iscomplexobj(x):
        return [*_words(x.real), *_words(x.imag)]
    # Widening loses nothing; of eight bytes the bitcast makes two words, along a new axis.
    if x.dtype.itemsize < 4:
        x = x.astype(jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32)
    return [jax.lax.bitcast_convert_type(x, jnp.uint32)]


def _places(shape: tuple[int, ...]) -> jax.Array:
    """Of every entry its number, without moving one."""
    places = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        places = places * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return places


def _scrambled(x: jax.Array) -> jax.Array:
    """The last steps of MurmurHash3: every bit of the input changes about half of those of the output."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))
