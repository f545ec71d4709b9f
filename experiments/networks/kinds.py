"""The network that `network.kind` names, and the loss it is trained with."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

import jaxmgrit as jm
from experiments.errors import ConfigError
from experiments.foundation.functions import SIGNATURES, is_reference, own_function
from experiments.networks import prenorm, residual
from experiments.networks.architecture import Architecture, Inputs, Layer, State
from experiments.networks.residual import Network

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def initial_params(network: Network, inputs: Inputs, seed: int, dtype: str) -> jm.Params:
    """The seeded initial parameters.

    Raises:
        ConfigError: Inputs that the network cannot take.
    """
    if is_reference(network.kind):
        return _own_params(network, inputs, seed, dtype)
    if inputs.integers != (network.kind == "transformer"):
        takes, given = ("characters", "numbers") if network.kind == "transformer" else ("numbers", "characters")
        raise ConfigError(
            f"network.kind = {network.kind!r}: expected {takes}, but inputs are {given}. Use network.kind: transformer "
            "with problem.name: text, and only with it."
        )
    return architecture(network).initialise(inputs, seed, dtype)


def architecture(network: Network) -> Architecture:
    """The functions of the network of a config.

    Raises:
        ConfigError: Keys that do not fit each other.
    """
    if is_reference(network.kind):
        return _own(network)
    if network.kind == "transformer":
        return prenorm.transformer(network)
    if network.kind == "mlp":
        return prenorm.mlp(network)
    return residual.architecture(network)


def _own(network: Network) -> Architecture:
    """The functions of a network of the user's own."""
    function = own_function(network.kind, "network.kind", "network")
    made = function(network.layers, network.width)
    if not isinstance(made, tuple) or len(made) != 4 or not all(map(callable, made)):
        raise ConfigError(
            f"network.kind = {network.kind!r}: expected four functions, {SIGNATURES['network'].partition('-> ')[2]}; "
            f"it returns {type(made).__name__}."
        )
    opening, step, outputs, init = made

    def initialise(inputs: Inputs, seed: int, dtype: str) -> jm.Params:
        # Shape and classes of the inputs, without `integers` between them.
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), init(jax.random.key(seed), *inputs[::2]))
        return jm.Params(*params)

    return Architecture(opening, step, outputs, initialise)


def _own_params(network: Network, inputs: Inputs, seed: int, dtype: str) -> jm.Params:
    """The initial parameters of a network of the user's own, checked."""
    says = f"network.kind = {network.kind!r}: init(key, {inputs.shape}, {inputs.classes})"
    try:
        params = architecture(network).initialise(inputs, seed, dtype)
    except ConfigError:
        raise
    except Exception as error:  # a user's program may raise anything
        raise ConfigError(f"{says}: {type(error).__name__}: {error}") from None
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        # Files of parameters name an array by the keys of its dicts, and are read back as dicts.
        if not all(isinstance(key, jax.tree_util.DictKey) for key in path[1:]):
            raise ConfigError(f"{says}: expected jm.Params of dicts, found {jax.tree_util.keystr(path)}.")
        if path[0] == jax.tree_util.GetAttrKey("layers") and leaf.shape[:1] != (network.layers,):
            raise ConfigError(
                f"{says}: expected layers with leading axis network.layers = {network.layers}, but "
                f"{jax.tree_util.keystr(path)} has shape {leaf.shape}."
            )
    return params


def loss_function(name: str) -> Loss:
    """The loss that `training.loss` names: (outputs, y) -> scalar."""
    if is_reference(name):
        return own_function(name, "training.loss", "loss")
    return squared_error if name == "squared_error" else cross_entropy


def cross_entropy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Softmax cross-entropy, mean over all labels: logits (batch, ..., classes), integers (batch, ...) -> scalar."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, y))


def squared_error(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared error: outputs and targets, both (batch, targets) -> scalar."""
    return jnp.mean((outputs - y) ** 2)


@dataclass(frozen=True)
class Classification:
    """The loss of a network, for `jm.Problem`: (theta_close, u_final, y) -> (loss, {"accuracy": ...}).

    Attributes:
        outputs: (theta_close, u_final) -> logits (batch, ..., classes).
        loss: (outputs, y) -> scalar.
    """

    outputs: Callable[[Layer, State], jax.Array]
    loss: Loss = cross_entropy

    def __call__(self, theta: Layer, u: State, y: jax.Array) -> tuple[jax.Array, Layer]:
        """The mean loss, and the share of labels that have the largest logit."""
        outputs = self.outputs(theta, u)
        value = self.loss(outputs, y)
        return value, {"accuracy": jnp.mean(jnp.argmax(outputs, axis=-1) == y, dtype=value.dtype)}


@dataclass(frozen=True)
class Regression:
    """The loss of a network that predicts numbers, for `jm.Problem`: as `Classification`.

    Attributes:
        outputs: (theta_close, u_final) -> predictions (batch, targets).
        loss: (outputs, y) -> scalar.
    """

    outputs: Callable[[Layer, State], jax.Array]
    loss: Loss = squared_error

    def __call__(self, theta: Layer, u: State, y: jax.Array) -> tuple[jax.Array, Layer]:
        """The mean loss; and as accuracy the share of the targets' variance, which is 1, that is explained (R^2)."""
        outputs = self.outputs(theta, u)
        value = self.loss(outputs, y)
        return value, {"accuracy": (1 - squared_error(outputs, y)).astype(value.dtype)}
