"""Warm values by sample, for mini-batches: leaves (intervals, samples, ...)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmgrit._types import State, Warm

PyTree = Any


def take(warm: Warm, samples: jax.Array) -> PyTree:
    """The values of some samples, leaves (intervals, batch, ...); NaN for a sample that does not exist."""

    def one(x: jax.Array) -> jax.Array:
        return x.at[:, samples].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)

    return jax.tree.map(one, warm)


def put(warm: Warm, samples: jax.Array, values: State) -> PyTree:
    """All values, with those of some samples replaced."""

    def one(x: jax.Array, new: jax.Array) -> jax.Array:
        return x.at[:, samples].set(new, mode="drop", wrap_negative_indices=False)

    return jax.tree.map(one, warm, values)
