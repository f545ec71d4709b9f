"""The networks that solvers are measured with: layers that sample one smooth theta(t), or independent ones."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Layout = Literal["batch_first", "width_first"]
LAYOUTS: tuple[Layout, ...] = ("batch_first", "width_first")
Layers = dict[str, jax.Array]


def tanh_step(layout: Layout = "batch_first") -> Callable[[Layers, jax.Array, Any], jax.Array]:
    """The residual layer `u + h tanh(u W + b)`, for states (batch, width) or (width, batch)."""
    if layout == "batch_first":
        return lambda theta, u, h: u + h * jnp.tanh(u @ theta["w"] + theta["b"])
    return lambda theta, u, h: u + h * jnp.tanh(theta["w"].T @ u + theta["b"][:, None])


def smooth_layers(layers: int, width: int, seed: int = 0, scale: float = 1.0, dtype: str = "float64") -> Layers:
    """Parameters of so many layers, sampled from one smooth theta(t) on [0, 1] at t = (n + 1/2)/N.

    theta(t) = a + b cos(pi t) + c sin(2 pi t) with normal a, b and c, so that a deeper network is a finer
    discretisation of the same differential equation.

    Args:
        layers: N.
        width: Features of a state.
        seed: Of a, b and c.
        scale: Their standard deviation: scale/sqrt(width) for the matrices, scale for the biases.
        dtype: Of the result.

    Returns:
        {"w": (N, width, width), "b": (N, width)}.
    """
    random = np.random.default_rng(seed)
    t = (np.arange(layers) + 0.5) / layers
    waves = np.stack([np.ones(layers), np.cos(np.pi * t), np.sin(2 * np.pi * t)], axis=1)
    w = scale / np.sqrt(width) * np.tensordot(waves, random.normal(size=(3, width, width)), 1)
    b = scale * np.tensordot(waves, random.normal(size=(3, width)), 1)
    return {"w": jnp.asarray(w, dtype), "b": jnp.asarray(b, dtype)}


def independent_layers(layers: int, width: int, seed: int = 0, scale: float = 1.0, dtype: str = "float64") -> Layers:
    """Parameters of so many layers that have nothing in common: normal matrices, biases of 0.

    Args:
        layers: N.
        width: Features of a state.
        seed: Of the matrices.
        scale: Their entries' standard deviation is scale/sqrt(width).
        dtype: Of the result.

    Returns:
        {"w": (N, width, width), "b": (N, width)}.
    """
    random = np.random.default_rng(seed)
    w = scale / np.sqrt(width) * random.normal(size=(layers, width, width))
    return {"w": jnp.asarray(w, dtype), "b": jnp.zeros((layers, width), dtype)}
