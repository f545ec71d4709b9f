"""The network that `network.kind` names, and the loss it is trained with."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

import jaxmgrit as jm
from experiments.errors import ConfigError
from experiments.networks import prenorm, residual
from experiments.networks.architecture import Architecture, Inputs, Layer, State
from experiments.networks.residual import Network


def initial_params(network: Network, inputs: Inputs, seed: int, dtype: str) -> jm.Params:
    """The seeded initial parameters.

    Raises:
        ConfigError: Inputs that the network cannot take.
    """
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
    if network.kind == "transformer":
        return prenorm.transformer(network)
    if network.kind == "mlp":
        return prenorm.mlp(network)
    return residual.architecture(network)


def cross_entropy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Softmax cross-entropy, mean over all labels: logits (batch, ..., classes), integers (batch, ...) -> scalar."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, y))


@dataclass(frozen=True)
class Classification:
    """The loss of a network, for `jm.Problem`: (theta_close, u_final, y) -> (loss, {"accuracy": ...}).

    Attributes:
        outputs: (theta_close, u_final) -> logits (batch, ..., classes).
    """

    outputs: Callable[[Layer, State], jax.Array]

    def __call__(self, theta: Layer, u: State, y: jax.Array) -> tuple[jax.Array, Layer]:
        """The mean loss, and the share of labels that have the largest logit."""
        outputs = self.outputs(theta, u)
        value = cross_entropy(outputs, y)
        return value, {"accuracy": jnp.mean(jnp.argmax(outputs, axis=-1) == y, dtype=value.dtype)}
