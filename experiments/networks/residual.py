"""Residual networks: opening, residual and classification layers, penalties, initial values.

Parameters are `jm.Params` of dicts. Of a dense network of width w: opening {w: (inputs, w), b: (w,)}, layers
{w: (N, w, w), b: (N, w)}, closing {w: (w, classes), b: (classes,)}; a state is an array (batch, w). Of a convolutional
one with w channels: layers {w: (N, 3, 3, w, w), b: (N, w)}, closing {w: (height width w, classes), b: (classes,)}; a
state is an array (batch, height, width, w). A fixed opening has no parameters. With `bias: scalar` every b of the
opening and the layers has one entry. With `layout: width_first` a dense network's state is `Columns`.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field

import jaxmgrit as jm
from experiments.errors import ConfigError
from experiments.foundation.functions import Function
from experiments.foundation.section import NonNegative, Section
from experiments.networks.architecture import Architecture, Inputs, Layer, State, Step

KERNEL = 3  # pixels along each side of a convolution's kernel


class Network(Section):
    """Opening layer, residual layers, softmax classification."""

    kind: Literal["dense", "convolutional", "mlp", "transformer"] | Function = Field(
        default="dense",
        description="residual layers of full matrices, of 3 x 3 kernels on images, of two matrices behind a layer "
        "norm; pre-norm transformer layers on characters; or a function's: (layers, width) -> (opening, step, "
        "outputs, init)",
    )
    layers: int = Field(default=64, ge=1, le=1_000_000, description="number N of residual layers")
    width: int = Field(default=8, ge=1, le=65_536, description="features of a state; channels of a convolutional one")
    heads: int = Field(default=4, ge=1, le=1024, description="of a transformer's attention; a divisor of the width")
    opening: Literal["dense", "zero_padding", "replicate"] = Field(
        default="dense", description="from an input's features (an image's channels) to the width: trained; or fixed"
    )
    activation: Literal["tanh", "relu", "smooth_relu"] = Field(
        default="tanh", description="of the residual layers and a dense opening"
    )
    bias: Literal["vector", "scalar"] = Field(
        default="vector",
        description="of those: one for each feature or channel, or one for the whole layer (published)",
    )
    final_time: float = Field(default=5.0, gt=0, description="T; the step size is h = T/N")
    initialisation: Literal["equal", "interpolated", "independent"] = Field(
        default="equal", description="hidden layers all alike, linear between two random ends, or each its own"
    )
    layout: Literal["batch_first", "width_first"] = Field(
        default="batch_first",
        description="axes of a dense network's states; width_first is faster on a CPU for large batches of narrow ones",
    )
    scale: float = Field(default=1.0, gt=0, description="initial weights have standard deviation scale/sqrt(inputs)")


class Penalty(Section):
    """Weights of the penalties in the objective."""

    gamma_tik: NonNegative = Field(default=0.0, description="gamma/2 |theta|^2 over opening and hidden layers")
    gamma_class: NonNegative = Field(default=0.0, description="gamma/2 |theta|^2 over the classification layer")
    gamma_ddt: NonNegative = Field(
        default=0.0, description="gamma/2 sum |(theta^n - theta^(n-1))/h|^2 over hidden layers"
    )


# A type of its own tells the closing layer which axis is which.
class Columns(NamedTuple):
    """A state that is kept (width, batch)."""

    values: jax.Array


def smooth_relu(x: jax.Array) -> jax.Array:
    """ReLU with the corner rounded off: 2.5 x^2 + 0.5 x + 0.025 for |x| < 0.1 (Guenther et al. 2020)."""
    return jnp.where(jnp.abs(x) < 0.1, 2.5 * x**2 + 0.5 * x + 0.025, jax.nn.relu(x))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "smooth_relu": smooth_relu,
}


def affine(theta: Layer, u: jax.Array) -> jax.Array:
    """`u W + b` over the last axis: (..., inputs) -> (..., outputs)."""
    return u @ theta["w"] + theta["b"]


def convolution(theta: Layer, u: jax.Array) -> jax.Array:
    """3 x 3 cross-correlation of images with zeros around, and a bias: (batch, height, width, channels) -> the same.

    Each row of the kernel acts on a row of the image (all columns and channels) as one banded matrix. That is more
    arithmetic than `lax.conv_general_dilated` does, but in matrix products: on a CPU the gradient takes a third of the
    time for 4 channels, and an eighth under `vmap` over layers, which XLA turns into grouped convolutions.
    """
    batch, height, width, channels = u.shape
    rows = jnp.pad(u.reshape(batch, height, width * channels), ((0, 0), (1, 1), (0, 0)))
    # Shifted identities drop what would come from beyond the edge: the zeros around, along a row.
    shifts = jnp.stack([jnp.eye(width, k=1 - column, dtype=u.dtype) for column in range(KERNEL)])
    bands = jnp.einsum("jxy,ijcd->ixcyd", shifts, theta["w"]).reshape(KERNEL, width * channels, width * channels)
    total = sum(rows[:, i : i + height] @ bands[i] for i in range(KERNEL))
    return jnp.reshape(total, u.shape) + theta["b"]


LINEAR: dict[str, Callable[[Layer, jax.Array], jax.Array]] = {"dense": affine, "convolutional": convolution}


def opening(network: Network) -> Callable[[Layer, jax.Array], State]:
    """The opening layer: inputs (batch, features) or images (batch, height, width, channels) -> states.

    `dense` is act(x W + b), `zero_padding` appends zeros, `replicate` repeats the input; all on the last axis. A dense
    network takes an image as one row of features.
    """
    act = ACTIVATIONS[network.activation]

    def dense(theta: Layer, x: jax.Array) -> jax.Array:
        return act(affine(theta, x))

    def zero_padding(theta: Layer, x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, network.width - x.shape[-1])])

    def replicate(theta: Layer, x: jax.Array) -> jax.Array:
        return jnp.tile(x, network.width // x.shape[-1])

    chosen = {"dense": dense, "zero_padding": zero_padding, "replicate": replicate}[network.opening]
    if network.kind == "convolutional":
        return chosen
    if network.layout == "width_first":
        return lambda theta, x: Columns(chosen(theta, x.reshape(x.shape[0], -1)).T)
    return lambda theta, x: chosen(theta, x.reshape(x.shape[0], -1))


def residual_step(network: Network) -> Callable[[Layer, State, Step], State]:
    """The residual layer `u + h act(K(theta) u + b)`, forward Euler for u' = act(K u + b)."""
    act, linear = ACTIVATIONS[network.activation], LINEAR[network.kind]

    def step(theta: Layer, u: jax.Array, h: Step) -> jax.Array:
        return u + h * act(linear(theta, u))

    def columns(theta: Layer, u: Columns, h: Step) -> Columns:
        return Columns(u.values + h * act(theta["w"].T @ u.values + theta["b"][:, None]))

    return columns if network.layout == "width_first" else step


def logits(theta: Layer, u: State) -> jax.Array:
    """The classification layer: final states (batch, ...) or `Columns` -> (batch, classes)."""
    u = u.values.T if isinstance(u, Columns) else u
    return affine(theta, u.reshape(u.shape[0], -1))


def penalty(weights: Penalty, h: float, mesh_independent: bool = False) -> jm.LayerwisePenalty | None:
    """The published penalties: Tikhonov (with its own weight for the last layer), smoothness in depth; None if zero."""
    if weights.gamma_tik == weights.gamma_class == weights.gamma_ddt == 0:
        return None
    return jm.published_penalty(h, **weights.model_dump(), mesh_independent=mesh_independent)


def architecture(network: Network) -> Architecture:
    """The functions of a dense or convolutional network."""

    def initial(inputs: Inputs, seed: int, dtype: str) -> jm.Params:
        return initialise(network, inputs.shape, inputs.classes, seed, dtype)

    return Architecture(opening(network), residual_step(network), logits, initial)


def initialise(network: Network, shape: tuple[int, ...], classes: int, seed: int, dtype: str) -> jm.Params:
    """Initial parameters: normal weights, zero biases except for a dense opening's.

    `equal` and `interpolated` are smooth in depth, which coarse levels need to be good approximations and which helps
    sequential training as well; `independent` layers are rough in depth for ever.

    Args:
        network: The network.
        shape: Of one input, (features,) or (height, width, channels).
        classes: How many classes there are.
        seed: Of the random values.
        dtype: Of the parameters.

    Raises:
        ConfigError: Inputs that the network cannot take.
    """
    # Each part has its own key: a fixed opening, which draws nothing, changes no other part.
    keys = jax.random.split(jax.random.key(seed), 4)
    width, depth = network.width, network.layers
    features, kernel = _fit(network, shape)

    def normal(key: jax.Array, *shape: int) -> jax.Array:
        return _normal(network.scale, key, shape, (), dtype)

    weights = in_depth(network, keys[0], (*kernel, width, width), dtype)
    biases = 1 if network.bias == "scalar" else width
    opened: Layer = {}
    if network.opening == "dense":
        bias = jax.random.uniform(keys[1], (biases,), dtype, -1.0, 1.0)
        opened = {"w": normal(keys[2], features, width), "b": bias}
    final = math.prod(shape[:-1]) * width if kernel else width
    return jm.Params(
        opening=opened,
        layers={"w": weights, "b": jnp.zeros((depth, biases), dtype)},
        closing={"w": normal(keys[3], final, classes), "b": jnp.zeros((classes,), dtype)},
    )


def in_depth(network: Network, key: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Initial weights of the hidden layers, (N, *shape), as `network.initialisation` says."""
    depth = network.layers
    if network.initialisation == "independent":
        return _normal(network.scale, key, shape, (depth,), dtype)
    # Both ends are drawn in any case, so that `equal` and `interpolated` begin with the same layer.
    first, last = _normal(network.scale, key, shape, (2,), dtype)
    if network.initialisation == "equal":
        last = first
    t = (jnp.arange(depth, dtype=dtype) + 0.5) / depth  # layers at the midpoints of their steps
    return first[None] + t.reshape(depth, *[1] * len(shape)) * (last - first)[None]


def _normal(scale: float, key: jax.Array, shape: tuple[int, ...], copies: tuple[int, ...], dtype: str) -> jax.Array:
    """Copies of a matrix or kernel, with standard deviation scale/sqrt(inputs)."""
    return scale / math.sqrt(math.prod(shape[:-1])) * jax.random.normal(key, (*copies, *shape), dtype)


def _fit(network: Network, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """The features the opening takes, and the layers' kernel: (), or (3, 3) for a convolutional network.

    Raises:
        ConfigError: Inputs that the network cannot take.
    """
    kernel = (KERNEL, KERNEL) if network.kind == "convolutional" else ()
    if kernel and len(shape) != 3:
        raise ConfigError(
            f"network.kind = 'convolutional': expected images, but an input has {shape[0]} features. "
            "Use network.kind: dense, or problem.name: mnist."
        )
    inputs = shape[-1] if kernel else math.prod(shape)
    what = "channel(s) of an input" if kernel else "features of an input"
    if network.opening == "zero_padding" and network.width < inputs:
        raise ConfigError(
            f"network.width = {network.width}: expected at least the {inputs} {what} with network.opening = "
            f"'zero_padding'. Use --network.width {inputs} or more, or network.opening: dense."
        )
    if network.opening == "replicate" and network.width % inputs != 0:
        raise ConfigError(
            f"network.width = {network.width}: expected a multiple of the {inputs} {what} with network.opening = "
            f"'replicate'. Use --network.width {inputs}, or network.opening: dense."
        )
    return inputs, kernel
