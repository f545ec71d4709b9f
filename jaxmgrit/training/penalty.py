"""Penalties that are sums over layers and over neighbouring layers, evaluated where the layers live."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmgrit._checks import is_real
from jaxmgrit._programs import cached
from jaxmgrit._pytree import add, merge, split, where
from jaxmgrit.backend.base import REPLICATED, SHARDED, Backend

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Layers, Mask, State
    from jaxmgrit.training.state import Params

PyTree = Any

PAIRS = slice(None, -1), slice(1, None)
"""Of the layers: each that has a next one, and that next one."""


@dataclass(frozen=True)
class LayerwisePenalty:
    """Sums over the layers, sum_n layer(theta^n) + sum_{n>=1} neighbours(theta^{n-1}, theta^n), and what is not of one.

    The other terms are ends(theta_open, theta_close) and shared(theta_shared).

    Choose it over a general function `Problem(penalty=...)` where layers are spread over devices: every device
    evaluates its own layers and needs one layer of its neighbour, whereas a general function needs all layers in one
    place. It can be called with `Params` as well.

    Args:
        layer: one layer's parameters -> scalar, or None.
        neighbours: (parameters of a layer, of the next one) -> scalar, or None.
        ends: (opening layer's, closing layer's parameters) -> scalar, or None.
        shared: (parameters that all layers share) -> scalar, or None.

    Raises:
        TypeError: one of them is not a function.

    Example:
        >>> import jax.numpy as jnp, jaxmgrit as jm
        >>> tikhonov = jm.LayerwisePenalty(layer=lambda theta: 1e-3 * jnp.sum(theta**2))
        >>> round(float(tikhonov(jm.Params((), jnp.ones((16, 2, 2)), ()))), 3)
        0.064
    """

    layer: Callable[[PyTree], Any] | None = None
    neighbours: Callable[[PyTree, PyTree], Any] | None = None
    ends: Callable[[PyTree, PyTree], Any] | None = None
    shared: Callable[[PyTree], Any] | None = None

    def __post_init__(self) -> None:
        for name in ("layer", "neighbours", "ends", "shared"):
            f = getattr(self, name)
            if f is not None and not callable(f):
                raise TypeError(f"LayerwisePenalty: {name}={f!r} is not a function; give one, or None.")

    def __call__(self, params: Any) -> Any:
        """The penalty of `Params`, layers with leading axis N."""
        terms = []
        # Where all parameters are shared, `vmap` would have no axis to go over.
        some = bool(jax.tree.leaves(params.layers))
        if self.layer is not None and some:
            terms.append(jnp.sum(jax.vmap(self.layer)(params.layers)))
        if self.neighbours is not None and some:
            before, after = (jax.tree.map(lambda x, part=part: x[part], params.layers) for part in PAIRS)
            terms.append(jnp.sum(jax.vmap(self.neighbours)(before, after)))
        if self.ends is not None or self.shared is not None:
            terms.append(self.of_the_rest(params))
        return sum(terms[1:], terms[0]) if terms else jnp.zeros(())

    def of_the_rest(self, params: Any) -> Any:
        """The part of `Params` that belongs to no single hidden layer; 0 without one."""
        ends = 0.0 if self.ends is None else self.ends(params.opening, params.closing)
        return ends if self.shared is None else ends + self.shared(params.shared)

    def of_layers(self, theta: Layers, layers: int, backend: Backend) -> Any:
        """The layers' part, of parameters laid out in slots and spread over the backend; 0 without one."""
        if (self.layer is None and self.neighbours is None) or not jax.tree.leaves(theta):
            return 0.0
        return _program(self, layers, backend, False)(theta)[0]

    def of_layers_with_gradient(self, theta: Layers, layers: int, backend: Backend) -> tuple[Any, PyTree]:
        """The layers' part and its gradient by slot, for the differentiable leaves."""
        if (self.layer is None and self.neighbours is None) or not jax.tree.leaves(theta):
            return 0.0, jax.tree.map(jnp.zeros_like, split(theta)[0])
        return _program(self, layers, backend, True)(theta)


@cached
def _program(
    penalty: LayerwisePenalty, layers: int, backend: Backend, gradient: bool
) -> Callable[[PyTree], tuple[Any, PyTree]]:
    def terms(f: Callable[..., Any], at: tuple[PyTree, ...], inside: Mask) -> tuple[Any, tuple[PyTree, ...]]:
        """The sum of f over this device's layers that are `inside`, and its derivatives."""
        parts = [split(theta) for theta in at]
        differentiable, others = [d for d, _ in parts], [o for _, o in parts]

        def value(d: list[PyTree], o: list[PyTree]) -> Any:
            return f(*map(merge, d, o))

        if not gradient:
            values = jax.vmap(value)(differentiable, others)
            return jnp.sum(jnp.where(inside, values, jnp.zeros_like(values))), tuple(differentiable)
        values, gradients = jax.vmap(jax.value_and_grad(value))(differentiable, others)
        # Padding repeats a layer and is evaluated like one; neither its term nor its derivative counts.
        total = jnp.sum(jnp.where(inside, values, jnp.zeros_like(values)))
        return total, tuple(where(inside, g, jax.tree.map(jnp.zeros_like, g)) for g in gradients)

    def body(theta: Layers) -> tuple[Any, PyTree]:
        first = jax.tree.map(lambda x: x[0], theta)
        size = jax.tree.leaves(theta)[0].shape[0]
        slot = backend.index() * size + jnp.arange(size, dtype=jnp.int32)
        values, gradients = [], []
        if penalty.layer is not None:
            value, (own,) = terms(penalty.layer, (theta,), slot < layers)
            values, gradients = [value], [own]
        if penalty.neighbours is not None:
            # Layer 0 has no predecessor: whatever is filled in is masked by slot > 0.
            before = backend.shift(theta, 1, first)
            value, (d_before, d_after) = terms(penalty.neighbours, (before, theta), (slot > 0) & (slot < layers))
            values.append(value)
            gradients.append(d_after)
            if gradient:
                # The slot of layer n has found the derivative by theta^{n-1}: one slot back, maybe to the neighbour.
                gradients.append(backend.shift(d_before, -1, jax.tree.map(lambda x: jnp.zeros_like(x[0]), d_before)))
        total = backend.all_sum(sum(values[1:], values[0]))
        return total, (sum_trees(gradients) if gradient else None)

    return backend.lift(body, (SHARDED,), (REPLICATED, SHARDED if gradient else None))


def penalty_value(penalty: Callable[..., Any], params: Params, layers: int, backend: Backend) -> Any:
    """A penalty of laid-out parameters of N layers."""
    if isinstance(penalty, LayerwisePenalty):
        return penalty.of_the_rest(params) + penalty.of_layers(params.layers, layers, backend)
    return penalty(params._replace(layers=first_layers(backend.gather(params.layers), layers)))


def penalty_gradient(
    penalty: Callable[..., Any], differentiable: Params, others: Params, layers: int, backend: Backend
) -> tuple[Any, Params]:
    """A penalty of laid-out parameters, split as by `split`, and its gradient, laid out."""
    if isinstance(penalty, LayerwisePenalty):
        value, d_layers = penalty.of_layers_with_gradient(merge(differentiable.layers, others.layers), layers, backend)
        rest, fixed = (half._replace(layers=None) for half in (differentiable, others))
        d_rest = jax.tree.map(jnp.zeros_like, rest)
        if penalty.ends is not None or penalty.shared is not None:
            more, d_rest = jax.value_and_grad(lambda p: penalty.of_the_rest(merge(p, fixed)))(rest)
            value = value + more
        return value, d_rest._replace(layers=d_layers)

    def whole_penalty(p: Params) -> Any:
        whole: Params = merge(p, others)
        return penalty(whole._replace(layers=first_layers(whole.layers, layers)))

    # A general function needs all layers in one place; they are cut to N inside, so padding gets gradient 0.
    whole = differentiable._replace(layers=backend.gather(differentiable.layers))
    others = others._replace(layers=backend.gather(others.layers))
    value, gradient = jax.value_and_grad(whole_penalty)(whole)
    return value, gradient._replace(layers=backend.scatter(gradient.layers))


def first_layers(tree: Arrays, layers: int) -> PyTree:
    """The first N entries of every leaf: what is not padding."""
    return jax.tree.map(lambda x: x[:layers], tree)


def sum_trees(trees: list[PyTree]) -> PyTree:
    """Leafwise sum of one or more pytrees."""
    total = trees[0]
    for tree in trees[1:]:
        total = add(total, tree)
    return total


def _squares(tree: Arrays) -> Any:
    return sum(jnp.sum(x * x) for x in jax.tree.leaves(split(tree)[0]))


def published_penalty(
    h: float,
    *,
    gamma_tik: float = 0.0,
    gamma_class: float = 0.0,
    gamma_ddt: float = 0.0,
    mesh_independent: bool = False,
) -> LayerwisePenalty:
    """The published penalties: Tikhonov, with a weight of its own for the last layer, and smoothness in depth.

    gamma_tik/2 (|theta_open|^2 + |theta_shared|^2 + c sum_n |theta^n|^2) + gamma_class/2 |theta_close|^2
    + gamma_ddt/2 c sum_{n>=1} |(theta^n - theta^{n-1})/h|^2, where c = 1 as published.

    With `mesh_independent` c = h: the sums are then Riemann sums of the integrals of |theta(t)|^2 and |theta'(t)|^2
    over (0, T), and a given theta(t) is penalised alike however many layers it is sampled by.

    Args:
        h: the layers' step size, > 0.
        gamma_tik: >= 0.
        gamma_class: >= 0.
        gamma_ddt: >= 0.
        mesh_independent: scale the layers' terms with h.

    Raises:
        ValueError: a weight is negative or not finite, or h is not a positive number.

    Example:
        >>> import jax.numpy as jnp, jaxmgrit as jm
        >>> penalty = jm.published_penalty(0.1, gamma_tik=1e-3, gamma_ddt=1e-3)
        >>> round(float(penalty(jm.Params((), jnp.ones((16, 2, 2)), ()))), 3)
        0.032

    Source: Guenther et al. 2020 (arXiv 1812.04352), section 2.
    """
    weights = {"gamma_tik": gamma_tik, "gamma_class": gamma_class, "gamma_ddt": gamma_ddt}
    for name, gamma in weights.items():
        if not is_real(gamma) or not math.isfinite(gamma) or gamma < 0:
            raise ValueError(f"published_penalty: {name}={gamma!r} is not a finite number >= 0; 0 leaves the term out.")
    if not is_real(h) or not math.isfinite(h) or h <= 0:
        raise ValueError(f"published_penalty: h={h!r} is not a number > 0; give the layers' step size, T/N.")
    scale = h if mesh_independent else 1.0

    def layer(theta: Layers) -> Any:
        return 0.5 * scale * gamma_tik * _squares(theta)

    def neighbours(before: State, after: State) -> Any:
        slopes = jax.tree.map(lambda a, b: (b - a) / h, split(before)[0], split(after)[0])
        return 0.5 * scale * gamma_ddt * _squares(slopes)

    def ends(opening: PyTree, closing: PyTree) -> Any:
        return 0.5 * (gamma_tik * _squares(opening) + gamma_class * _squares(closing))

    def shared(theta: PyTree) -> Any:
        return 0.5 * gamma_tik * _squares(theta)

    # A term left out costs neither a sweep over the layers nor a message to the neighbour.
    return LayerwisePenalty(
        layer if gamma_tik else None,
        neighbours if gamma_ddt else None,
        ends if gamma_tik or gamma_class else None,
        shared if gamma_tik else None,
    )
