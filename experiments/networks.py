"""The dense residual network of the level-set experiment: opening, residual and classification layer, initial values.

Parameters are `jm.Params` of dicts: opening {w: (inputs, width), b: (width,)}, layers {w: (N, width, width),
b: (N, width)}, closing {w: (width, classes), b: (classes,)}. A state is an array (batch, width).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxmgrit as jm
from experiments.schema import Network, Penalty

Layer = dict[str, jax.Array]


def smooth_relu(x: jax.Array) -> jax.Array:
    """ReLU with the corner rounded off: 2.5 x^2 + 0.5 x + 0.025 for |x| < 0.1 (Guenther et al. 2020)."""
    return jnp.where(jnp.abs(x) < 0.1, 2.5 * x**2 + 0.5 * x + 0.025, jax.nn.relu(x))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "smooth_relu": smooth_relu,
}


def affine(theta: Layer, u: jax.Array) -> jax.Array:
    """`u W + b` for u (batch, inputs): (batch, outputs)."""
    return u @ theta["w"] + theta["b"][None, :]


def opening(theta: Layer, x: jax.Array) -> jax.Array:
    """The opening layer tanh(x W + b): (batch, inputs) -> (batch, width)."""
    return jnp.tanh(affine(theta, x))


def residual_step(activation: str) -> Callable[[Layer, jax.Array, Any], jax.Array]:
    """The residual layer `u + h act(u W + b)`, forward Euler for u' = act(u W + b)."""
    act = ACTIVATIONS[activation]

    def step(theta: Layer, u: jax.Array, h: Any) -> jax.Array:
        return u + h * act(affine(theta, u))

    return step


def classification(theta: Layer, u: jax.Array, y: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Softmax cross-entropy, mean over the batch.

    Args:
        theta: The classification layer.
        u: Final states, (batch, width).
        y: Labels, (batch,).

    Returns:
        The loss, and {"accuracy": the share of points whose largest logit is that of their label}.
    """
    logits = affine(theta, u)
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))
    return loss, {"accuracy": jnp.mean(jnp.argmax(logits, axis=1) == y, dtype=loss.dtype)}


def penalty(weights: Penalty, h: float) -> Callable[[jm.Params], jax.Array] | None:
    """The published penalties: Tikhonov (with its own weight for the last layer), smoothness in depth; None if zero."""
    if weights.gamma_tik == weights.gamma_class == weights.gamma_ddt == 0:
        return None

    def squares(tree: Any) -> Any:
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))

    def value(params: jm.Params) -> jax.Array:
        slopes = jax.tree.map(lambda leaf: jnp.diff(leaf, axis=0) / h, params.layers)
        return (
            weights.gamma_tik / 2 * (squares(params.opening) + squares(params.layers))
            + weights.gamma_class / 2 * squares(params.closing)
            + weights.gamma_ddt / 2 * squares(slopes)
        )

    return value


def initialise(network: Network, inputs: int, classes: int, seed: int, dtype: str) -> jm.Params:
    """Initial parameters: normal weights, zero biases except for the opening layer's.

    `equal` and `interpolated` are smooth in depth, which coarse levels need to be good approximations and which helps
    sequential training as well; `independent` layers are rough in depth for ever.
    """
    keys = jax.random.split(jax.random.key(seed), 4)
    width, depth = network.width, network.layers

    def normal(key: jax.Array, *shape: int) -> jax.Array:
        return network.scale / math.sqrt(shape[-2]) * jax.random.normal(key, shape, dtype)

    if network.initialisation == "independent":
        weights = normal(keys[0], depth, width, width)
    else:
        first, last = normal(keys[0], 2, width, width)
        if network.initialisation == "equal":
            last = first
        t = ((jnp.arange(depth, dtype=dtype) + 0.5) / depth)[:, None, None]  # layers at the midpoints of their steps
        weights = first[None] + t * (last - first)[None]
    bias = jax.random.uniform(keys[1], (width,), dtype, -1.0, 1.0)
    return jm.Params(
        opening={"w": normal(keys[2], inputs, width), "b": bias},
        layers={"w": weights, "b": jnp.zeros((depth, width), dtype)},
        closing={"w": normal(keys[3], width, classes), "b": jnp.zeros((classes,), dtype)},
    )
