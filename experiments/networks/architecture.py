"""What a network is made of, whatever its kind."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

import jaxmgrit as jm

Layer = dict[str, jax.Array]  # parameters of one layer, or of the opening or closing one
State: TypeAlias = Any  # an array, or a pytree of some, leading axis: the samples; checkers do not type pytrees
Layers: TypeAlias = Any  # parameters of layers, every leaf with a leading axis for them, or of one of them
Step: TypeAlias = float | jax.Array  # size of a layer's step


class Inputs(NamedTuple):
    """What a network is for.

    Attributes:
        shape: Of one input: (features,), (height, width, channels), or (context,) for characters.
        integers: Whether inputs are the numbers of characters.
        classes: How many classes there are.
    """

    shape: tuple[int, ...]
    integers: bool
    classes: int


class Architecture(NamedTuple):
    """The functions of a network.

    Attributes:
        opening: (theta_open, x) -> u0, from inputs (batch, ...) to states.
        step: (theta, u, h) -> u_next, one hidden layer.
        outputs: (theta_close, u) -> logits (batch, ..., classes).
        initialise: (inputs, seed, dtype) -> initial parameters.
    """

    opening: Callable[[Layer, jax.Array], State]
    step: Callable[[Layer, State, Step], State]
    outputs: Callable[[Layer, State], jax.Array]
    initialise: Callable[[Inputs, int, str], jm.Params]
