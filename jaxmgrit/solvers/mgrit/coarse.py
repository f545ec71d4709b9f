"""What replaces m layers on a coarse level: its parameters and its step, the two choices of rediscretisation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmgrit._checks import integer
from jaxmgrit._pytree import is_inexact, where
from jaxmgrit.system.kept_layers import one_after_another

if TYPE_CHECKING:
    from jaxmgrit._types import Layers, Mask, State, StepSize

PyTree = Any
Step = Callable[[PyTree, PyTree, Any], PyTree]


def injection(theta: Layers) -> PyTree:
    """Coarse parameters: those of the interval's first layer (the published choice).

    Args:
        theta: parameters of m layers, leading axis m.

    Returns:
        The parameters of one coarse layer.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> jm.injection({"w": jnp.arange(8.0).reshape(4, 2)})["w"].tolist()
        [0.0, 1.0]
    """
    return jax.tree.map(lambda x: x[0], theta)


def average(theta: Layers) -> PyTree:
    """Coarse parameters: the mean over the interval's layers; right for parameters that are smooth in depth.

    Leaves that have no mean (integers, keys) are taken from the first layer.

    Args:
        theta: parameters of m layers, leading axis m.

    Returns:
        The parameters of one coarse layer.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> jm.average({"w": jnp.arange(8.0).reshape(4, 2)})["w"].tolist()
        [3.0, 4.0]
    """
    return jax.tree.map(lambda x: jnp.mean(x, axis=0) if is_inexact(x) else x[0], theta)


def all_layers(theta: Layers) -> PyTree:
    """Coarse parameters: those of all the m layers, unchanged; for layers that are not smooth in depth.

    The coarse step is then given all of them, leading axis m, with their step sizes, shape (m,): `picard(p)`, or a
    function (step, theta, u, h, m, mask) -> u_next. The mask tells layers from padding, shape (m,), and is None where
    the interval is complete; a function without this parameter sees the padding as layers. On several devices the
    layers stay where they are, and the state goes from device to device.

    Args:
        theta: parameters of m layers, leading axis m.

    Returns:
        The same.

    Example:
        >>> import jaxmgrit as jm
        >>> solver = jm.MGRIT(8, levels=2, coarse_params=jm.all_layers, coarse_step=jm.picard(2))
    """
    return theta


def same_step(step: Step, theta: Layers, u: State, h: StepSize, m: int) -> PyTree:
    """Coarse step: Phi itself with the summed step size (the published choice).

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * theta * u
        >>> print(f"{jm.same_step(step, 1.0, jnp.asarray(1.0), 0.5, 4):.3f}")
        1.500
    """
    return step(theta, u, h)


def midpoint(step: Step, theta: Layers, u: State, h: StepSize, m: int) -> PyTree:
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

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * theta * u
        >>> print(f"{jm.midpoint(step, 1.0, jnp.asarray(1.0), 0.5, 4):.3f} for {1.125**4:.3f}")
        1.594 for 1.602
    """
    w = step(theta, u, h * (0.5 * (1.0 - 1.0 / m)))
    return jax.tree.map(lambda a, b, c: a + b - c, u, step(theta, w, h), w)


def zero_step(step: Step, theta: Layers, u: State, h: StepSize, m: int) -> PyTree:
    """Coarse step u -> 0: no coarse correction, relaxation only.

    Every interval then starts from what its neighbour arrived at in the last cycle (block Jacobi). Right where the
    network forgets within an interval, as trained recurrences often do; elsewhere information travels one interval a
    cycle. Works with any `coarse_params`.

    Args:
        step: Phi, not evaluated.
        theta: not used.
        u: state; only its shapes matter.
        h: not used.
        m: not used.

    Returns:
        Zeros like the state.

    Example:
        >>> import jaxmgrit as jm
        >>> solver = jm.MGRIT(32, levels=2, cycles=2, coarse_step=jm.zero_step)
    """
    return jax.tree.map(jnp.zeros_like, u)


@dataclass(frozen=True)
class Picard:
    """The coarse step `picard` makes; called with (step, theta, u, h, m, mask) as `all_layers` says."""

    sweeps: int
    inner_values: bool = False

    def __post_init__(self) -> None:
        integer("picard", "sweeps", self.sweeps, 0)
        if not isinstance(self.inner_values, bool):
            raise TypeError(f"picard: inner_values={self.inner_values!r} is not True or False.")

    def __call__(
        self, step: Step, theta: Layers, u: State, h: StepSize, m: int, mask: Mask = None, *, reverse: bool = False
    ) -> PyTree:
        """The next coarse state, like u; theta has leading axis m, h and the mask (or None) shape (m,).

        With `reverse` the last layer is the first, as adjoints have it.
        """
        # After q sweeps the first q of the w_i are right: m sweeps are the layers in turn, at m times the work.
        if self.sweeps >= m:
            return one_after_another(step, theta, u, h, mask, reverse)
        if self.sweeps == 0:
            return u

        def increments(w: PyTree, axis: int | None) -> PyTree:
            after = jax.vmap(step, in_axes=(0, axis, 0))(theta, w, h)
            d = jax.tree.map(lambda x, y: x - (y if axis == 0 else y[None]), after, w)
            # Padding adds nothing: an incomplete interval's coarse step is made of its own layers alone.
            return where(mask, d, jax.tree.map(jnp.zeros_like, d))

        def sweep(d: State, _: None) -> tuple[PyTree, None]:
            return increments(jax.tree.map(lambda x, y: x[None] + _sum_before(y, reverse), u, d), 0), None

        # The first sweep starts from u at all layers: one product with their matrices next to each other.
        d, _ = jax.lax.scan(sweep, increments(u, None), None, length=self.sweeps - 1, unroll=min(self.sweeps - 1, 4))
        return jax.tree.map(lambda x, y: x + _sum(y), u, d)


# Up to so many layers prefix sums are one product, and their total is written out: on a CPU twice as fast as a cumsum
# and a reduction, which XLA puts into one slow kernel with the layers that make the summands. With more of them the
# product's matrix, m x m, would count beside the states of thin layers.
_FEW = 32


def _sum(x: jax.Array) -> jax.Array:
    """The sum along the leading axis."""
    if x.shape[0] > _FEW:
        return jnp.sum(x, axis=0)
    return functools.reduce(jnp.add, jax.lax.split(x, [1] * x.shape[0], axis=0))[0]


def _sum_before(x: jax.Array, reverse: bool) -> jax.Array:
    """For every entry along the leading axis the sum of those before it; with `reverse` of those behind it."""
    m = x.shape[0]
    if m > _FEW:
        return jax.lax.cumsum(x, axis=0, reverse=reverse) - x
    before = jnp.tri(m, k=-1, dtype=x.dtype)
    flat = x.reshape(m, -1)
    return jax.lax.dot(before.T if reverse else before, flat, precision=jax.lax.Precision.HIGHEST).reshape(x.shape)


def picard(sweeps: int, inner_values: bool = False) -> Picard:
    """Coarse step for rough layers: the sum of all m layers' increments, at states from `sweeps` Picard sweeps.

    From w_i = u repeat d_i = Phi(theta_i, w_i, h_i) - w_i, w_i = u + d_0 + ... + d_{i-1}; then
    G(u) = u + d_0 + ... + d_{m-1}.

    All layers of an interval are evaluated at once. One sweep is the averaged vector field, m sweeps are the m layers
    in turn, exactly; the error falls like c^(p+1) / ((p+1)! K^p) for K intervals and layers whose increments'
    derivatives sum to c in norm, and needs no smoothness in depth. Choose it with `coarse_params=all_layers` where
    layers are initialised independently: 2 sweeps, 3 for hard networks, about sqrt(N / sweeps) intervals or more.

    Args:
        sweeps: p >= 0. 0 is the identity; from m on the layers run one after another, which is as slow as sequential.
        inner_values: whether the adjoint's coarse step is p sweeps of the layers' transposes at the state's own values
            inside the intervals, rather than the transpose of G: no layer is then evaluated again, and the error is of
            the same order, but what the transposes need of all N states is kept, not of the C-points alone.

    Returns:
        A coarse step; equal arguments make equal steps.

    Raises:
        TypeError, ValueError: sweeps is not an integer >= 0, or inner_values not a truth value.

    Example:
        >>> import jax.numpy as jnp, jaxmgrit as jm
        >>> solver = jm.MGRIT(4, levels=2, coarse_params=jm.all_layers, coarse_step=jm.picard(2), cycles=1)
        >>> def step(theta, u, h):
        ...     return u + h * jnp.tanh(u @ theta)
        >>> theta = jnp.eye(3) + jnp.zeros((16, 3, 3))
        >>> jm.solve(step, theta, jnp.ones((2, 3)), h=0.1, solver=solver).u_final.shape
        (2, 3)
    """
    # An object, not a closure: programs are remembered by their solver, and equal steps must find the same one.
    return Picard(sweeps, inner_values)
