"""Optax optimisers over layers that are padded and spread over devices: what plain optax gives on the plain pytree.

What an optimiser keeps per layer is stored as the layers are: padded to the partition's slots and spread over the
devices. There are two ways to update, and which is taken changes no result:

- whole: padding is cut away, under `MPI` the layers are gathered, the optimiser sees every leaf with leading axis N;
- by layer: where the program that updates N layers *is* that of one layer, vectorised, each device runs it on its own
  slots, and nothing is moved. The two programs are traced and compared, so no list of operations decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from jaxmgrit._programs import cached
from jaxmgrit._pytree import strong
from jaxmgrit.training.state import Params

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays
    from jaxmgrit.backend.base import Backend

PyTree = Any

WHOLE = -1
"""In place of an axis: a leaf that has no axis over the layers."""


@dataclass(frozen=True)
class Storage:
    """How arrays over the layers are kept: N of them, padded to a partition's slots, spread by a backend.

    Attributes:
        layers: N.
        slots: over all devices, padding included.
        backend: spreads the slots.
    """

    layers: int
    slots: int
    backend: Backend

    @property
    def plain(self) -> bool:
        """Whether arrays are kept as the user knows them."""
        return self.slots == self.layers and self.backend.blocks == 1

    def store(self, x: jax.Array, axis: int) -> jax.Array:
        """Pad an axis over the layers with zeros and spread it; give arrays without one to all devices."""
        if axis == WHOLE:
            return self.backend.replicate(x)
        if self.slots > self.layers:
            x = jnp.pad(x, [(0, self.slots - self.layers if i == axis else 0) for i in range(x.ndim)])
        return self.backend.scatter(x, axis)

    def load(self, tree: Arrays, axes: PyTree) -> PyTree:
        """Undo `store`, for all leaves of a pytree: the layers are whole, on every process, without padding."""
        leaves, structure = jax.tree.flatten(tree)
        numbers: list[int] = jax.tree.leaves(axes)
        spread = [i for i, axis in enumerate(numbers) if axis != WHOLE]
        # `gather` joins leading axes. With one block arrays are whole already, and only the padding goes.
        first = [jnp.moveaxis(leaves[i], numbers[i], 0) for i in spread]
        for i, x in zip(spread, self.backend.gather(first) if self.backend.blocks > 1 else first, strict=True):
            leaves[i] = jnp.moveaxis(x[: self.layers], 0, numbers[i])
        return jax.tree.unflatten(structure, leaves)

    def place(self, tree: Arrays, axes: PyTree) -> PyTree:
        """Let what was computed from stored arrays stay where `store` puts them."""

        def one(x: jax.Array, axis: int) -> jax.Array:
            return self.backend.replicate(x) if axis == WHOLE else self.backend.keep(x, axis)

        return jax.tree.map(one, tree, axes)

    def load_params(self, params: Params) -> Params:
        """Parameters, or what is like them, with leading axis N on every leaf of the layers."""
        return self.load(params, over_layers(params))

    def shapes(self, params: Params) -> Params:
        """The shapes of `load_params`, without computing anything."""

        def one(x: jax.Array, axis: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape if axis == WHOLE else (self.layers, *x.shape[1:]), x.dtype)

        return jax.tree.map(one, params, over_layers(params))


def over_layers(params: Params) -> Params:
    """The axis over the layers of every leaf of parameters."""
    axes = Params(*(jax.tree.map(lambda _: WHOLE, part) for part in params))
    return axes._replace(layers=jax.tree.map(lambda _: 0, params.layers))


def layer_axes(init: Callable[[Params], PyTree], params: Params, layers: int) -> PyTree:
    """The axis over the layers of every leaf of `init(params)`: the one that grows by one with one more layer.

    Args:
        init: parameters -> an optimiser's state.
        params: shapes, layers with leading axis N.
        layers: N.
    """
    longer = params._replace(
        layers=jax.tree.map(lambda x: jax.ShapeDtypeStruct((layers + 1, *x.shape[1:]), x.dtype), params.layers)
    )
    state, other = jax.eval_shape(init, params), jax.eval_shape(init, longer)
    structures: list[Any] = [jax.tree.structure(state), jax.tree.structure(other)]
    if structures[0] != structures[1]:
        # A state whose structure depends on N tells nothing of its axes.
        return jax.tree.map(lambda _: WHOLE, state)

    def one(x: Any, y: Any) -> int:
        grown = [i for i, sizes in enumerate(zip(x.shape, y.shape, strict=False)) if sizes[0] != sizes[1]]
        if len(x.shape) != len(y.shape) or len(grown) != 1 or jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return WHOLE
        # An axis that grows otherwise (with N^2, say) is not one over the layers.
        return grown[0] if (x.shape[grown[0]], y.shape[grown[0]]) == (layers, layers + 1) else WHOLE

    return jax.tree.map(one, state, other)


def init_optimizer(init: Callable[[Params], PyTree], params: Params, storage: Storage) -> PyTree:
    """An optimiser's first state, stored; `params` have leading axis N on every leaf of the layers."""
    axes = layer_axes(init, jax.eval_shape(lambda: params), storage.layers)
    # A weak dtype may be a definite one after the first update: the jitted step would compile twice.
    return jax.tree.map(storage.store, strong(init(params)), axes)


def update_optimizer(
    optimizer: optax.GradientTransformation,
    gradients: Params,
    state: PyTree,
    params: Params,
    storage: Storage,
    value: jax.Array,
    value_fn: Callable[[Params], jax.Array],
) -> tuple[Params, PyTree]:
    """One update: (updates like the gradients, next state), both stored.

    Args:
        optimizer: any optax transformation.
        gradients: stored, like the parameters; zero in the padding.
        state: stored.
        params: stored; zero in the padding.
        storage: how.
        value: the objective at these parameters.
        value_fn: the objective at others, with leading axis N.

    Raises:
        TypeError: the optimiser asks for something that optax does not pass to all.
    """
    shapes = storage.shapes(params)
    structure, leaves = jax.tree.structure(shapes), tuple(jax.tree.leaves(shapes))
    axes = layer_axes(optimizer.init, shapes, storage.layers)
    # Plain arrays are what optax knows: there is nothing to move, and so no program to compare.
    if not storage.plain:
        by_layer = _program_by_layer(optimizer, structure, leaves, storage.layers, value.dtype)
        if by_layer is not None:
            updates, state = by_layer(gradients, state, params, value)
            return updates, storage.place(strong(state), axes)
    gradients, params, state = storage.load((gradients, params, state), (*(over_layers(params),) * 2, axes))
    try:
        updates, state = _with_extras(optimizer).update(
            gradients, state, params, value=value, grad=gradients, value_fn=value_fn
        )
    except TypeError as error:
        # optax has no way to ask what an update needs; Python's own message names it.
        if not (missing := re.search(r"missing \d+ required keyword-only argument.*", str(error))):
            raise
        raise TypeError(
            f"optimizer: its update is {missing.group()}; an update is given `value`, `grad` and `value_fn`, as optax "
            "names them, and nothing else: choose an optimiser that needs no more."
        ) from error
    return (
        jax.tree.map(storage.store, updates, over_layers(updates)),
        jax.tree.map(storage.store, strong(state), axes),
    )


def _with_extras(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimiser, which takes `value`, `grad` and `value_fn` whether it needs them or not."""
    if isinstance(optimizer, optax.MultiSteps):  # an object like an optimiser, which hands them on
        return optax.GradientTransformationExtraArgs(optimizer.init, optimizer.update)
    return optax.with_extra_args_support(optimizer)


Update = Callable[[Params, PyTree, Params, jax.Array], tuple[Params, PyTree]]


@cached
def _program_by_layer(
    optimizer: optax.GradientTransformation,
    structure: Any,
    leaves: tuple[jax.ShapeDtypeStruct, ...],
    layers: int,
    dtype: Any,
) -> Update | None:
    """(gradients, state, params, value) -> (updates, next state) of any number of layers; None if they are not apart.

    Args:
        optimizer: any optax transformation.
        structure: of the parameters.
        leaves: their shapes, with leading axis N.
        layers: N.
        dtype: the objective's.
    """
    params: Params = jax.tree.unflatten(structure, leaves)
    extended = _with_extras(optimizer)
    axes = layer_axes(optimizer.init, params, layers)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), jax.eval_shape(optimizer.init, params))

    def update(gradients: Params, state: PyTree, params: Params, value: jax.Array) -> tuple[Params, PyTree]:
        # No `value_fn`: it needs all layers. Whoever asks for it raises below, and is run whole.
        return extended.update(gradients, state, params, value=value, grad=gradients)

    def mapped(tree: PyTree) -> list[int | None]:
        return [None if axis == WHOLE else axis for axis in jax.tree.leaves(tree)]

    own, kept = mapped(over_layers(params)), mapped(axes)
    kinds: Any = jax.tree.structure(axes)

    def flat(gradients: list[Any], state: list[Any], params: list[Any], value: jax.Array) -> tuple[Any, Any]:
        trees = (jax.tree.unflatten(structure, gradients), jax.tree.unflatten(kinds, state))
        updates, after = update(*trees, jax.tree.unflatten(structure, params), value)
        return structure.flatten_up_to(updates), kinds.flatten_up_to(after)

    def vectorised(gradients: Params, state: PyTree, params: Params, value: jax.Array) -> tuple[Params, PyTree]:
        by_layer = jax.vmap(flat, in_axes=(own, kept, own, None), out_axes=(own, kept))
        updates, after = by_layer(jax.tree.leaves(gradients), jax.tree.leaves(state), jax.tree.leaves(params), value)
        return jax.tree.unflatten(structure, updates), jax.tree.unflatten(kinds, after)

    args = (params, state, params, jax.ShapeDtypeStruct((), dtype))
    try:
        same = _same_program(jax.make_jaxpr(update)(*args), jax.make_jaxpr(vectorised)(*args))
    except Exception:  # one layer alone may make an optimiser raise anything: then it is not one layer's program
        return None
    return vectorised if same else None


def _same_program(one: Any, other: Any) -> bool:
    """Whether two traced programs are the same operations on the same constants."""
    return (
        # Printed, since programs have no equality of their own, and there variables are named in order.
        str(one.jaxpr) == str(other.jaxpr)
        and len(one.consts) == len(other.consts)
        and all(a is b for a, b in zip(one.consts, other.consts, strict=True))
    )
