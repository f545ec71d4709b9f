"""Nested iteration: from the parameters of a trained network to those of a deeper one with the same final time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from jaxmgrit._checks import check_layers, integer
from jaxmgrit._pytree import is_inexact
from jaxmgrit.training.state import Params

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays

PyTree = Any


def refine(params: Params, factor: int, kind: Literal["constant", "linear"] = "linear") -> Params:
    """Parameters of a network `factor` times as deep, to go on training from (give its problem h / factor).

    Train a shallow network first, refine, go on: most of the work is done where layers are few. Layer n stands for
    theta(t) at the middle of its step, t = (n + 1/2) h. An optimiser's state belongs to a depth: initialise the deeper
    network's trainer anew. Leaves that are not floating point are repeated.

    Args:
        params: of N layers.
        factor: >= 1.
        kind: "linear" between the layers' midpoints, and on beyond the first and last (exact for parameters linear in
            depth); "constant" repeats each layer (exact for parameters that are constant, and for what the coarse
            layers stand for).

    Returns:
        Parameters of N * factor layers; opening and closing layer are the same.

    Raises:
        TypeError, ValueError: `factor` is not an integer >= 1, `kind` is unknown, or leading axes differ.

    Example:
        >>> import jax.numpy as jnp, jaxmgrit as jm
        >>> params = jm.Params(opening=None, layers=jnp.array([0.0, 2.0]), closing=None)
        >>> jm.refine(params, 2).layers.tolist()
        [-0.5, 0.5, 1.5, 2.5]
        >>> jm.refine(params, 2, "constant").layers.tolist()
        [0.0, 0.0, 2.0, 2.0]

    Source: Cyr, Guenther, Schroder, Multilevel initialization for layer-parallel deep neural network training, 2019
    (arXiv 1912.08974).
    """
    integer("refine", "factor", factor, 1)
    if kind not in ("constant", "linear"):
        raise ValueError(f"refine: kind={kind!r} is unknown; choose 'constant' or 'linear'.")
    if not isinstance(params, Params):
        raise TypeError(f"params is a {type(params).__name__}; give jm.Params(opening, layers, closing).")
    layers = check_layers(params.layers, "params.layers")

    # Layer n stands for theta at the middle of its step, so the deeper network's layers lie between them.
    def one(x: Arrays) -> jax.Array:
        if kind == "constant" or layers == 1 or not is_inexact(x):
            return jnp.repeat(x, factor, axis=0)
        # Not in x's dtype: in half precision neighbouring layers of a deep network would have one place.
        place = (jnp.arange(layers * factor, dtype=float) + 0.5) / factor - 0.5
        # Clipped to an existing pair, whose line goes on beyond the ends: weights below 0 and above 1.
        left = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, layers - 2)
        weight = (place - left.astype(place.dtype)).astype(x.dtype)
        weight = weight.reshape(-1, *[1] * (x.ndim - 1))
        return (1 - weight) * x[left] + weight * x[left + 1]

    return params._replace(layers=jax.tree.map(one, params.layers))
