"""What all layers have in common in training: shared parameters, a context of the batch, random keys."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import merge
from jaxmgrit.solvers.mgrit.coarse import all_layers, average, injection
from jaxmgrit.solvers.mgrit.options import Options
from jaxmgrit.system.step import Given

if TYPE_CHECKING:
    from jaxmgrit._types import State, StepSize
    from jaxmgrit.backend.base import Backend
    from jaxmgrit.solvers.base import Solver

PyTree = Any


class Common(NamedTuple):
    """What `step(theta, u, h, common)` and `running_cost(theta, u, h, common)` are given beside their layer's own.

    Attributes:
        shared: `Params.shared`, parameters that all layers share; None without any. Their gradient is the sum over all
            layers.
        context: what the batch comes with, as given to the trainer's step or to `evaluate` (masks, conditioning); None
            without any. With a data axis its leaves' leading axis is the samples', and a device sees its part of them;
            leaves without axes are for all.
        key: the iteration's key folded with the layer's index, `jax.random.fold_in(key, n)` for n = 0 .. N - 1, the
            same in every cycle, in the adjoint and in the gradient; None without one (evaluate without dropout then).
            The layer of a coarse level that stands for several has the index of the first of them; with
            `coarse_params=jm.all_layers` each keeps its own. With a data axis the key is folded with the number of
            the device's part of the batch first, so that parts draw masks of their own.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> def step(theta, u, h, common):
        ...     d = h * jnp.tanh(u @ common.shared + theta)
        ...     if common.key is not None:
        ...         d = d * jax.random.bernoulli(common.key, 0.9, d.shape) / 0.9
        ...     return u + d
        >>> jm.Common(jnp.eye(2), None, None).key is None
        True
    """

    shared: PyTree
    context: PyTree
    key: Any


class Extra(NamedTuple):
    """What an iteration is given beside its batch: (context, key); None without."""

    context: PyTree = None
    key: Any = None


NOTHING = Extra()


class Layer(NamedTuple):
    """One layer: its parameters, and which one it is."""

    theta: PyTree
    index: Any


@dataclass(frozen=True)
class _OfLayer:
    """A user's function of (theta, u, h) or (theta, u, h, common) as one of (layer, u, h, given)."""

    f: Callable[..., Any]
    common: bool
    numbered: bool

    def __call__(self, layer: PyTree, u: State, h: StepSize, given: Given) -> Any:
        theta = layer.theta if self.numbered else layer
        if not self.common:
            return self.f(theta, u, h)
        own, key = given.parts
        if key is not None:
            key = jax.random.fold_in(key[0], layer.index)  # of one part of the batch
        # Halves of one context, None where the other has the leaf: see `given_of`.
        return self.f(theta, u, h, Common(given.params, merge(own, given.whole), key))


@dataclass(frozen=True)
class _OfTheta:
    """A user's coarse parameters of numbered layers: the number is that of the first."""

    f: Callable[[PyTree], PyTree]

    def __call__(self, layers: Layer) -> Layer:
        return Layer(self.f(layers.theta), layers.index[0])


def of_layer(f: Callable[..., Any], common: bool, numbered: bool) -> Callable[..., Any]:
    """A user's step or running cost as one of (layer, u, h, given); `f` itself where it needs none of that."""
    return _OfLayer(f, common, numbered) if common or numbered else f


def needs_common(step: Callable[..., Any]) -> bool:
    """Whether a step cannot do without a fourth argument."""
    try:
        signature = inspect.signature(step)
    except (TypeError, ValueError):
        # A callable without a signature (some builtins) is taken to be step(theta, u, h).
        return False
    # An optional fourth parameter does not ask for `common`: that step does without it.
    return not _binds(signature, 3) and _binds(signature, 4)


def _binds(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*(None,) * count)
    except TypeError:
        return False
    return True


def _check_key(key: Any) -> None:
    try:
        kind = str(jax.random.key_impl(key))
        # A raw key is 2 words (threefry) or 4 (rbg), a typed key one entry.
        single = jax.eval_shape(jax.random.fold_in, key, 0).shape == key.shape and jnp.size(key) in (1, 2, 4)
    except (TypeError, ValueError, AttributeError):
        kind, single = "", False
    if not single:
        raise TypeError(f"key={key!r} is not a random key; give one, such as jax.random.key(0), for each iteration.")
    if "rbg" in kind:
        raise ValueError(
            f"key: the generator {kind!r} gives other numbers where layers are evaluated side by side, so that state "
            "and adjoint would have different masks; make the key with jax.random.key(seed, impl='threefry2x32')."
        )


def of_numbered(solver: Solver) -> Solver:
    """A solver of layers that know which one they are."""
    f = solver.coarse_params
    # The library's own act on all leaves of a `Layer`: the number is the first layer's, or each layer keeps its own.
    if f is None or f in (injection, average, all_layers):
        return solver
    assert isinstance(solver, Options)
    return replace(solver, coarse_params=_OfTheta(f))


def given_of(shared: PyTree, extra: Extra, backend: Backend) -> Given:
    """What the step is given, as the backend spreads it; of the whole batch.

    Raises:
        TypeError: `key` is not one random key.
        ValueError: its generator gives other numbers where several layers are evaluated at once.
    """
    parts, key = backend.data_size, extra.key
    if key is not None:
        _check_key(key)
    context = jax.tree.map(jnp.asarray, extra.context)
    # Leaves without axes belong to all samples; with one part nothing has to be cut.
    split = jax.tree.map(lambda x: parts > 1 and x.ndim > 0, context)
    own = jax.tree.map(lambda x, mine: x if mine else None, context, split)
    whole = jax.tree.map(lambda x, mine: None if mine else x, context, split)
    if key is not None:
        numbers = jnp.arange(parts, dtype=jnp.int32)
        # Leading axis (parts,), cut by the data axis: no two parts draw the same. A single part keeps the key itself.
        keys = key[None] if parts == 1 else jax.vmap(lambda part: jax.random.fold_in(key, part))(numbers)
        return Given(shared, whole, backend.split_batch((own, keys)))
    return Given(shared, whole, (backend.split_batch(own), None))
