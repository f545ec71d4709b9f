"""How m layers become one: coarse parameters and coarse steps, the two choices of rediscretisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import is_inexact

PyTree = Any
Step = Callable[[PyTree, PyTree, Any], PyTree]


def injection(theta: PyTree) -> PyTree:
    """Coarse parameters: those of the interval's first layer (the published choice).

    Args:
        theta: parameters of m layers, leading axis m.

    Returns:
        The parameters of one coarse layer.
    """
    return jax.tree.map(lambda x: x[0], theta)


def average(theta: PyTree) -> PyTree:
    """Coarse parameters: the mean over the interval's layers; right for parameters that are smooth in depth.

    Leaves that have no mean (integers, keys) are taken from the first layer.

    Args:
        theta: parameters of m layers, leading axis m.

    Returns:
        The parameters of one coarse layer.
    """
    return jax.tree.map(lambda x: jnp.mean(x, axis=0) if is_inexact(x) else x[0], theta)


def same_step(step: Step, theta: PyTree, u: PyTree, h: Any, m: int) -> PyTree:
    """Coarse step: Phi itself with the summed step size (the published choice)."""
    return step(theta, u, h)


def midpoint(step: Step, theta: PyTree, u: PyTree, h: Any, m: int) -> PyTree:
    """Coarse step of second order, for residual layers Phi = u + h F: two evaluations of Phi.

    `w = Phi(theta, u, h/2 (1 - 1/m)); G(u) = u + Phi(theta, w, h) - w` equals m Euler steps of size h/m up to O(h^3)
    when the parameters are constant over the interval; use it with `average` and parameters smooth in depth.

    Args:
        step: Phi(theta, u, h) -> u_next.
        theta: parameters of the coarse layer.
        u: state.
        h: the sum of the step sizes the coarse step replaces.
        m: how many layers of the network it replaces.

    Returns:
        The next state.
    """
    w = step(theta, u, h * (0.5 * (1.0 - 1.0 / m)))
    return jax.tree.map(lambda a, b, c: a + b - c, u, step(theta, w, h), w)
