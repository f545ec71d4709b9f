"""Pre-norm networks: a residual MLP for points and images, a transformer for characters.

Layers are `u + h branch(norm(u))` without gains and biases, which the matrices next to a norm have anyway. With
T = sqrt(N) (an MLP) and T = sqrt(N/2) (a transformer, of two branches a layer) branches have the usual 1/sqrt(number of
branches). Parameters are `jm.Params` of dicts. MLP: layers {up: (N, w, 4 w), down: (N, 4 w, w)}, states (batch, w).
Transformer: opening {characters: (classes, w), positions: (context, w)}, layers {qkv: (N, w, 3 w), out: (N, w, w), up,
down}, states (batch, context, w). Closing {w: (w, classes), b: (classes,)}, behind a norm.
"""

import jax
import jax.numpy as jnp

import jaxmgrit as jm
from experiments.networks import residual
from experiments.networks.architecture import Architecture, Inputs, Layer, Step
from experiments.networks.blocks import layer_norm, transformer_block
from experiments.networks.residual import Network


def mlp(network: Network) -> Architecture:
    """A residual MLP with layer norm: `u + h gelu(norm(u) up) down`; its opening is a residual network's."""

    def step(theta: Layer, u: jax.Array, h: Step) -> jax.Array:
        return u + h * (jax.nn.gelu(layer_norm(u) @ theta["up"]) @ theta["down"])

    def initialise(inputs: Inputs, seed: int, dtype: str) -> jm.Params:
        params = residual.initialise(network, inputs.shape, inputs.classes, seed, dtype)
        w = network.width
        return params._replace(layers=_matrices(network, {"up": (w, 4 * w), "down": (4 * w, w)}, seed, dtype))

    return Architecture(residual.opening(network), step, _outputs, initialise)


def transformer(network: Network) -> Architecture:
    """A pre-norm transformer with causal attention: characters (batch, context) -> logits (batch, context, classes)."""

    def opening(theta: Layer, x: jax.Array) -> jax.Array:
        return theta["characters"][x] + theta["positions"][: x.shape[-1]]

    def initialise(inputs: Inputs, seed: int, dtype: str) -> jm.Params:
        w, classes, keys = network.width, inputs.classes, jax.random.split(jax.random.key(seed), 4)
        shapes = {"qkv": (w, 3 * w), "out": (w, w), "up": (w, 4 * w), "down": (4 * w, w)}
        return jm.Params(
            opening={
                "characters": network.scale * jax.random.normal(keys[1], (classes, w), dtype),
                "positions": network.scale * jax.random.normal(keys[2], (inputs.shape[0], w), dtype),
            },
            layers=_matrices(network, shapes, seed, dtype),
            closing={
                "w": network.scale * w**-0.5 * jax.random.normal(keys[3], (w, classes), dtype),
                "b": jnp.zeros((classes,), dtype),
            },
        )

    return Architecture(opening, transformer_block(network.heads), _outputs, initialise)


def _matrices(network: Network, shapes: dict[str, tuple[int, int]], seed: int, dtype: str) -> Layer:
    """The hidden layers' matrices, each kind from a random stream of its own."""
    # The key of a residual network's layers; opening and closing draw from the others.
    keys = jax.random.split(jax.random.key(seed), 4)[0]
    return {
        name: residual.in_depth(network, jax.random.fold_in(keys, i), shape, dtype)
        for i, (name, shape) in enumerate(shapes.items())
    }


def _outputs(theta: Layer, u: jax.Array) -> jax.Array:
    return layer_norm(u) @ theta["w"] + theta["b"]
