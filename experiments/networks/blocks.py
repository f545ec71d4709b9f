"""Blocks and cells as people write them: pre-norm transformer blocks, gated cells, Runge-Kutta steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.networks.architecture import Layer, Step

PyTree = Any


def normal(random: np.random.Generator, *shape: int, scale: float = 1.0) -> jax.Array:
    """Independent normal entries in float32."""
    return jnp.asarray(scale * random.normal(size=shape), jnp.float32)


def layer_norm(u: jax.Array, axis: int = -1) -> jax.Array:
    """Zero mean and unit variance along an axis."""
    centred = u - jnp.mean(u, axis, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis, keepdims=True) + 1e-5)


def transformer_parameters(random: np.random.Generator, layers: int, width: int) -> PyTree:
    """Attention and MLP weights of pre-LN blocks, 1/sqrt(fan-in), leading axis N."""
    shapes = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 4 * width), "down": (4 * width, width)}
    return {name: normal(random, layers, n, m, scale=n**-0.5) for name, (n, m) in shapes.items()}


def transformer_block(heads: int) -> Callable[[PyTree, jax.Array, Any], jax.Array]:
    """A pre-LN block with causal attention: states (batch, characters, width), branches scaled by h."""

    def step(p: Layer, u: jax.Array, h: Step) -> jax.Array:
        batch, length, width = u.shape
        q, k, v = jnp.split((layer_norm(u) @ p["qkv"]).reshape(batch, length, heads, -1), 3, axis=-1)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (width // heads) ** -0.5
        scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(batch, length, width)
        u = u + h * (mixed @ p["out"])
        return u + h * (jax.nn.gelu(layer_norm(u) @ p["up"]) @ p["down"])

    return step


def gru_weights(random: np.random.Generator, inputs: int, width: int) -> PyTree:
    """Weights of a GRU cell, 1/sqrt(fan-in)."""
    return {
        "x": normal(random, inputs, 3 * width, scale=inputs**-0.5),
        "h": normal(random, width, 3 * width, scale=width**-0.5),
        "b": jnp.zeros((3 * width,), jnp.float32),
    }


def gru_cell(weights: Layer) -> Callable[[jax.Array, jax.Array, Any], jax.Array]:
    """A GRU step: inputs (batch, inputs), states (batch, width)."""

    def step(x: jax.Array, u: jax.Array, h: Step) -> jax.Array:
        width = u.shape[-1]
        of_x, of_u = x @ weights["x"] + weights["b"], u @ weights["h"]
        gates = jax.nn.sigmoid(of_x[..., : 2 * width] + of_u[..., : 2 * width])
        reset, keep = gates[..., :width], gates[..., width:]
        new = jnp.tanh(of_x[..., 2 * width :] + reset * of_u[..., 2 * width :])
        return keep * u + (1 - keep) * new

    return step


def runge_kutta(field: Callable[[PyTree, jax.Array], jax.Array]) -> Callable[[PyTree, jax.Array, Any], jax.Array]:
    """A step of the classical fourth-order method for u' = field(theta, u)."""

    def step(p: Layer, u: jax.Array, h: Step) -> jax.Array:
        a = field(p, u)
        b = field(p, u + h / 2 * a)
        c = field(p, u + h / 2 * b)
        d = field(p, u + h * c)
        return u + h / 6 * (a + 2 * b + 2 * c + d)

    return step
