"""A training state as plain arrays, without padding or devices: what checkpoints hold and other layouts start from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxmgrit._checks import alike, describe
from jaxmgrit._pytree import fit
from jaxmgrit.training.optimizer_state import WHOLE, over_layers

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Warm
    from jaxmgrit.system.partition import Level
    from jaxmgrit.training.objective import Training
    from jaxmgrit.training.state import Params

PyTree = Any


class Snapshot(NamedTuple):
    """A training state that belongs to no number of devices; all leaves are NumPy arrays (of keys, their data).

    Attributes:
        params: parameters, layers with leading axis N.
        optimizer: the optimiser's state; what it keeps per layer has N entries along that axis.
        warm: the warm values, one entry per interval that holds layers.
        iteration: updates done so far, ().

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> loss = lambda p, u, y: (jnp.mean((u - y) ** 2), None)
        >>> problem = jm.Problem(lambda p, x: x @ p, step, loss, h=0.1)
        >>> params = jm.Params(jnp.eye(2), 0.1 * jnp.ones((16, 2, 2)), ())
        >>> batch = (jnp.ones((3, 2)), jnp.zeros((3, 2)))
        >>> trainer = jm.OneShot(problem, optax.sgd(0.1), solver=jm.MGRIT(4), adjoint=jm.MGRIT(4))
        >>> state = trainer.init(params, batch)
        >>> snapshot = trainer.export(state)
        >>> snapshot.params.layers.shape, int(trainer.restore(state, snapshot).iteration)
        ((16, 2, 2), 0)
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


def export(training: Training, state: State, axes: PyTree) -> Snapshot:
    """The snapshot of a state: gathered leaf by leaf, so that no device holds more than one leaf of all layers.

    Args:
        training: the state's.
        state: of any trainer.
        axes: the axis over the layers of every leaf of the optimiser's state, see `layer_axes`.
    """
    backend, count = training.backend, state.layers

    def kept(x: Arrays, axis: int) -> np.ndarray:
        if axis == WHOLE:
            return _on_host(x)
        # By slot of the state's partition, whose padding is behind the last layer.
        return np.moveaxis(_on_host(backend.gather(jnp.moveaxis(x, axis, 0)))[:count], 0, axis)

    def warm(values: Warm, level: Level) -> PyTree:
        def whole(x: Arrays) -> np.ndarray:
            # Intervals of nothing but padding depend on the number of devices: they are left out.
            return np.asarray(fit(_on_host(backend.join_batch(backend.gather(x), axis=1)), _filled(level), level.front))

        return jax.tree.map(whole, values)

    levels = training.schedule.warm_levels(count, training.setting)
    return Snapshot(
        jax.tree.map(kept, state.params, over_layers(state.params)),
        jax.tree.map(kept, state.optimizer, axes),
        tuple(map(warm, state.warm, levels)),
        _on_host(state.iteration),
    )


def restore(
    training: Training, state: State, axes: PyTree, snapshot: Snapshot
) -> tuple[Params, PyTree, PyTree, jax.Array]:
    """Undo `export`, for a state of the same trainer on any backend: parameters, optimiser, warm values, iteration.

    Padding repeats the edge; what the optimiser keeps of it, where never a gradient comes, is zero.

    Raises:
        ValueError: the snapshot does not have the structure, shapes and dtypes that the state's would have.
    """
    backend, storage = training.backend, training.storage(state.layers)
    level = training.schedule.level(state.layers, training.setting)
    warm_levels = training.schedule.warm_levels(state.layers, training.setting)
    _check(snapshot, _expected(training, state, axes))

    def laid_out(x: Arrays, like: Arrays, axis: int) -> Any:
        if axis == WHOLE:
            return backend.replicate(_array(x, like))
        return backend.scatter(_array(fit(x, level.slots, level.front), like))

    def kept(x: Arrays, like: Arrays, axis: int) -> Any:
        return storage.store(_array(x, like), axis)

    def warm(values: Warm, like: Warm, level: Level) -> PyTree:
        def own(x: Arrays, like: Arrays) -> Any:
            whole = _array(fit(x, level.intervals, level.front), like)
            return backend.scatter_states(backend.split_batch(whole, axis=1))

        return jax.tree.map(own, values, like)

    return (
        jax.tree.map(laid_out, snapshot.params, state.params, over_layers(state.params)),
        jax.tree.map(kept, snapshot.optimizer, state.optimizer, axes),
        tuple(map(warm, snapshot.warm, state.warm, warm_levels)),
        backend.replicate(_array(snapshot.iteration, state.iteration)),
    )


def _on_host(x: Arrays) -> np.ndarray:
    """A copy of a replicated or local array in NumPy; of keys, their data."""
    data = jax.random.key_data(x) if _is_key(x) else x
    if isinstance(data, jax.Array) and not data.is_fully_addressable:
        # Replicated over processes: any shard is all of it.
        data = data.addressable_data(0)
    # Not `asarray`: on a CPU that is a view of a buffer which a later step may be donated.
    return np.array(data)


def _expected(training: Training, state: State, axes: PyTree) -> Snapshot:
    """The shapes of a state's snapshot; nothing is gathered for them."""
    backend, count = training.backend, state.layers
    parts = backend.batch_parts

    def data(x: Arrays) -> jax.ShapeDtypeStruct:
        shape: jax.ShapeDtypeStruct = jax.eval_shape(lambda: jax.random.key_data(x) if _is_key(x) else x)
        return shape

    def resized(x: Arrays, axis: int, size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype)

    def kept(x: Arrays, axis: int) -> jax.ShapeDtypeStruct:
        return data(x) if axis == WHOLE else resized(data(x), axis, count)

    def warm(values: Warm, level: Level) -> PyTree:
        def whole(x: Arrays) -> jax.ShapeDtypeStruct:
            x = resized(x, 0, _filled(level))
            return resized(x, 1, parts * x.shape[1]) if parts > 1 else x

        return jax.tree.map(whole, values)

    levels = training.schedule.warm_levels(count, training.setting)
    return Snapshot(
        jax.tree.map(kept, state.params, over_layers(state.params)),
        jax.tree.map(kept, state.optimizer, axes),
        tuple(map(warm, state.warm, levels)),
        jax.ShapeDtypeStruct((), state.iteration.dtype),
    )


def _check(snapshot: Any, expected: Snapshot) -> None:
    """Raise a ValueError naming the first part of a snapshot that does not have the shapes of another."""
    for name in Snapshot._fields:
        given, own = getattr(snapshot, name), getattr(expected, name)
        if not alike(given, own):
            raise ValueError(
                f"snapshot.{name} does not fit this trainer: expected {describe(own)}, given {describe(given)}. "
                "Restore with the problem, optimiser, hierarchy and batch it was exported with."
            )


def _filled(level: Level) -> int:
    """How many intervals hold at least one step."""
    return -(-level.steps // level.factor)


def _is_key(x: Arrays) -> bool:
    return jax.dtypes.issubdtype(getattr(x, "dtype", np.float64), jax.dtypes.prng_key)


def _array(x: Arrays, like: Arrays) -> jax.Array:
    """A stored array in JAX, of the dtype of another (keys from their data); never the stored one's own memory."""
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.array(x), impl=jax.random.key_impl(like))
    # JAX may use NumPy's memory as it is, and the restored state will be donated.
    return jnp.array(x, like.dtype, copy=True)
