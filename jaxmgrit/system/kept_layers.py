"""One coarse step over all the layers it replaces: their parameters are kept, not made into one layer's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from jaxmgrit._pytree import where

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Layers, Mask, State, StepSize

PyTree = Any


class Kept(NamedTuple):
    """What a coarse slot knows of the layers it keeps, beside their parameters and step sizes.

    Attributes:
        inside: which of the m are layers of the network, the others being padding: (m,), or None if all are.
        exact: whether they are to be run one after another, (); None if none are.
    """

    inside: Any = None
    exact: Any = None


def one_after_another(
    step: Callable[..., PyTree], theta: Layers, u: State, h: StepSize, mask: Mask, reverse: bool = False
) -> PyTree:
    """The m layers in turn: theta and h with leading axis m; layers outside the mask pass the state on."""

    def one(value: State, layer: Layers) -> tuple[PyTree, None]:
        own, size, inside = layer
        return where(inside, step(own, value, size), value), None

    return jax.lax.scan(one, u, (theta, h, mask), reverse=reverse)[0]


def over_kept_layers(
    coarse_step: Callable[..., PyTree],
    step: Callable[..., PyTree],
    theta: Layers,
    u: State,
    h: StepSize,
    m: int,
    kept: Kept,
    reverse: bool = False,
) -> PyTree:
    """A coarse step that is given all m layers (and the mask, where it takes one), or the layers in turn.

    With `reverse` from the last layer to the first; the coarse step then is `picard`, which can.
    """

    def approximate(v: Arrays) -> PyTree:
        mask = (kept.inside,) if takes_mask(coarse_step) else ()
        if reverse:
            return coarse_step(step, theta, v, h, m, *mask, reverse=True)
        return coarse_step(step, theta, v, h, m, *mask)

    if kept.exact is None:
        return approximate(u)
    # A branch where slots run one by one, as in the coarsest solve; under a sweep's `vmap` both sides are computed.
    return jax.lax.cond(
        kept.exact, lambda v: one_after_another(step, theta, v, h, kept.inside, reverse), approximate, u
    )


def takes_mask(coarse_step: Callable[..., PyTree]) -> bool:
    """Whether a coarse step has a sixth parameter: the mask of an incomplete interval."""
    try:
        # Bound rather than counted, which defaults, *args and partial applications would mislead.
        inspect.signature(coarse_step).bind(*(None,) * 6)
    except (TypeError, ValueError):
        return False
    return True
