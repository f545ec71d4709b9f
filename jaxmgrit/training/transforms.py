"""Optax transformations for training with inexact gradients."""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays

PyTree = Any


class AnticipateState(NamedTuple):
    """The last gradient, and whether there is one."""

    previous: PyTree
    started: jax.Array


def anticipate(alpha: float) -> optax.GradientTransformation:
    """Hand on g + alpha (g - g_prev): the gradient as it will be once what arrives late has arrived.

    One-shot gradients lag behind the parameters: a fraction of each change comes an iteration late, which makes
    adaptive optimisers unstable at learning rates that suit exact gradients. Put it first in an `optax.chain`. Measured
    to help: alpha = 0.1-0.2 with 32 intervals, 0.3-0.5 with 16; 0 with a coarsening factor of 4.

    Args:
        alpha: >= 0; 0 changes nothing.

    Raises:
        ValueError: alpha is negative or not finite.

    Example:
        >>> import jax.numpy as jnp, jaxmgrit as jm, optax
        >>> optimizer = optax.chain(jm.anticipate(0.5), optax.sgd(1.0))
        >>> state = optimizer.init(jnp.zeros(()))
        >>> for gradient in (1.0, 2.0):
        ...     step, state = optimizer.update(jnp.asarray(gradient), state)
        >>> float(step)  # -(2 + 0.5 (2 - 1))
        -2.5
    """
    if not isinstance(alpha, numbers.Real) or not math.isfinite(alpha) or alpha < 0:
        raise ValueError(f"anticipate: alpha={alpha!r} is not a finite number >= 0; 0.1 to 0.5 is usual.")

    def init(params: PyTree) -> AnticipateState:
        # A flag beside the zeros: measured from them, the first gradient would be one large change.
        return AnticipateState(jax.tree.map(jnp.zeros_like, params), jnp.zeros((), bool))

    def update(gradients: Arrays, state: AnticipateState, params: PyTree = None) -> tuple[PyTree, AnticipateState]:
        del params

        def ahead(g: jax.Array, previous: jax.Array) -> jax.Array:
            return g + jnp.where(state.started, alpha, 0.0).astype(g.dtype) * (g - previous)

        return jax.tree.map(ahead, gradients, state.previous), AnticipateState(gradients, jnp.ones((), bool))

    return optax.GradientTransformation(init, update)


def l2_gradient(h: float) -> optax.GradientTransformation:
    """Hand on the gradient in the inner product of L2(0, T): that of the hidden layers divided by the step size.

    With h sum_n <theta^n, eta^n> as inner product, a Riemann sum of that of functions theta(t), eta(t) on (0, T), the
    gradient with respect to theta(t) at t = n h is the derivative with respect to theta^n divided by h. It tends to a
    function of t as layers are added, while the derivative itself tends to zero like h: so a step size that suits one
    depth suits all. Put it before the optimiser in an `optax.chain`. (Adam divides by the gradient's size anyway; of it
    only epsilon is affected.)

    Args:
        h: the layers' step size, T/N, > 0.

    Raises:
        ValueError: h is not a positive number.

    Example:
        >>> import optax, jaxmgrit as jm
        >>> optimizer = optax.chain(jm.l2_gradient(5.0 / 256), optax.sgd(1e-2))
    """
    if not isinstance(h, numbers.Real) or isinstance(h, bool) or not math.isfinite(h) or h <= 0:
        raise ValueError(f"l2_gradient: h={h!r} is not a finite number > 0; give the layers' step size, T/N.")

    def update(gradients: Arrays, state: PyTree, params: PyTree = None) -> tuple[Any, PyTree]:
        del params
        return gradients._replace(layers=jax.tree.map(lambda g: g / h, gradients.layers)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
