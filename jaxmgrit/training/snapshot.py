"""A training state as plain arrays, without padding or devices: what checkpoints hold and other layouts start from."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmgrit._checks import alike, describe
from jaxmgrit._pytree import fit, split
from jaxmgrit._types import Arrays
from jaxmgrit.backend.base import Backend
from jaxmgrit.system.partition import Level
from jaxmgrit.training.objective import Training
from jaxmgrit.training.optimizer_state import acts_by_entry, map_optimizer
from jaxmgrit.training.problem import Params

PyTree = Any


class Snapshot(NamedTuple):
    """A training state that belongs to no number of devices; all leaves are NumPy arrays (of keys, their data).

    Attributes:
        params: parameters, layers with leading axis N.
        optimizer: the optimiser's state; what it keeps per layer has N entries along that axis.
        warm: the warm values, one entry per interval that holds layers.
        iteration: updates done so far, ().
    """

    params: Params
    optimizer: PyTree
    warm: PyTree
    iteration: Any


class State(Protocol):
    """A trainer's state."""

    @property
    def params(self) -> Params:
        """Parameters, laid out."""

    @property
    def optimizer(self) -> PyTree:
        """The optimiser's state."""

    @property
    def warm(self) -> PyTree:
        """The schedule's warm values."""

    @property
    def iteration(self) -> Any:
        """Updates done so far."""

    @property
    def layers(self) -> int:
        """N."""


def export(training: Training, optimizer: optax.GradientTransformation, state: State) -> Snapshot:
    """The snapshot of a state: gathered leaf by leaf, so that no device holds more than one leaf of all layers."""
    backend, count = training.backend, state.layers
    slots, gathered = _slots(optimizer, state.params, backend)

    def layer(x: Arrays) -> np.ndarray:
        return _on_host(backend.gather(x))[:count]

    def by_layer(x: Arrays, axis: int) -> np.ndarray:
        if gathered:
            return _on_host(x)[(slice(None),) * axis + (slice(count),)]
        return np.moveaxis(layer(jnp.moveaxis(x, axis, 0)), 0, axis)

    def warm(values: PyTree, level: Level) -> PyTree:
        def whole(x: Arrays) -> np.ndarray:
            return fit(_on_host(backend.join_batch(backend.gather(x), axis=1)), _filled(level), level.front)

        return jax.tree.map(whole, values)

    host = functools.partial(jax.tree.map, _on_host)
    levels = training.schedule.warm_levels(count, training.setting)
    return Snapshot(
        Params(host(state.params.opening), jax.tree.map(layer, state.params.layers), host(state.params.closing)),
        map_optimizer(optimizer, state.optimizer, split(state.params)[0], slots, by_layer, _on_host),
        host(tuple(map(warm, state.warm, levels))),
        _on_host(state.iteration),
    )


def restore(
    training: Training, optimizer: optax.GradientTransformation, state: State, snapshot: Snapshot
) -> tuple[Params, PyTree, PyTree, jax.Array]:
    """Undo `export`, for a state of the same trainer on any backend: parameters, optimiser, warm values, iteration.

    Padding repeats the edge; what the optimiser keeps of it, where never a gradient comes, is zero.

    Raises:
        ValueError: the snapshot does not have the structure, shapes and dtypes that the state's would have.
    """
    _check(snapshot, export(training, optimizer, state))
    backend, setting = training.backend, training.setting
    level = training.schedule.level(state.layers, setting)
    slots, gathered = _slots(optimizer, state.params, backend)
    seen = split(state.params)[0]
    axes = map_optimizer(optimizer, state.optimizer, seen, slots, lambda leaf, axis: axis, lambda leaf: -1)

    def replicated(x: Arrays, like: Arrays) -> Any:
        return backend.replicate(_array(x, like))

    def laid_out(x: Arrays, like: Arrays) -> Any:
        return backend.scatter(_array(fit(x, level.slots, level.front), like))

    def kept(x: Arrays, like: Arrays, axis: int) -> Any:
        if axis < 0:
            return replicated(x, like)
        padding = [(0, level.slots - x.shape[axis] if i == axis else 0) for i in range(x.ndim)]
        padded = _array(np.pad(x, padding), like)
        return padded if gathered else backend.scatter(padded, axis)

    def warm(values: PyTree, like: Arrays, level: Level) -> PyTree:
        def own(x: Arrays, like: Arrays) -> Any:
            whole = _array(fit(x, level.intervals, level.front), like)
            return backend.scatter_states(backend.split_batch(whole, axis=1))

        return jax.tree.map(own, values, like)

    params = Params(
        jax.tree.map(replicated, snapshot.params.opening, state.params.opening),
        jax.tree.map(laid_out, snapshot.params.layers, state.params.layers),
        jax.tree.map(replicated, snapshot.params.closing, state.params.closing),
    )
    return (
        params,
        jax.tree.map(kept, snapshot.optimizer, state.optimizer, axes),
        tuple(map(warm, snapshot.warm, state.warm, training.schedule.warm_levels(state.layers, setting))),
        replicated(snapshot.iteration, state.iteration),
    )


def _on_host(x: Arrays) -> np.ndarray:
    """A copy of a replicated or local array in NumPy; of keys, their data."""
    data = jax.random.key_data(x) if _is_key(x) else x
    if isinstance(data, jax.Array) and not data.is_fully_addressable:
        data = data.addressable_data(0)
    return np.array(data)


def _check(snapshot: Any, expected: Arrays) -> None:
    """Raise a ValueError naming the first part of a snapshot that does not have the shapes of another."""
    for name in Snapshot._fields:
        given, own = getattr(snapshot, name), getattr(expected, name)
        if not alike(given, own):
            raise ValueError(
                f"snapshot.{name} does not fit this trainer: expected {describe(own)}, given {describe(given)}. "
                "Restore with the problem, optimiser, hierarchy and batch it was exported with."
            )


def _slots(optimizer: optax.GradientTransformation, params: Params, backend: Backend) -> tuple[int, bool]:
    """Lengths of the optimiser's axes over the slots, and whether they are whole on every device."""
    own = int(jax.tree.leaves(params.layers)[0].shape[0])
    gathered = backend.cut and not acts_by_entry(optimizer, split(params)[0])
    return own * backend.size if gathered else own, gathered


def _filled(level: Level) -> int:
    """How many intervals hold at least one step."""
    return -(-level.steps // level.factor)


def _is_key(x: Arrays) -> bool:
    return jax.dtypes.issubdtype(getattr(x, "dtype", np.float64), jax.dtypes.prng_key)


def _array(x: Arrays, like: Arrays) -> jax.Array:
    """A stored array in JAX, of the dtype of another (keys from their data); never the stored one's own memory."""
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.array(x), impl=jax.random.key_impl(like))
    return jnp.array(x, like.dtype, copy=True)
