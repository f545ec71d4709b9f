"""Optax optimisers over layers that are spread over devices: the same iterates as on one device.

Under `Local` and `Mesh` arrays are whole to whoever computes with them, and XLA communicates what an optimiser needs.
Under `MPI` a rank has only its own block of the layers. An optimiser that treats every entry by itself (SGD, Adam, ...)
then works on the block; one that mixes entries (a global norm, inner products) is run on the gathered layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core as core
import optax

from jaxmgrit._types import Arrays
from jaxmgrit.backend.base import Backend
from jaxmgrit.training.problem import Params

PyTree = Any


def init_optimizer(optimizer: optax.GradientTransformation, params: Params, backend: Backend) -> PyTree:
    """The optimiser's first state."""
    if backend.cut and not acts_by_entry(optimizer, params):
        return optimizer.init(_gathered(params, backend))
    return place_optimizer(optimizer, optimizer.init(params), params, backend)


def update_optimizer(
    optimizer: optax.GradientTransformation, gradients: Params, state: PyTree, params: Params, backend: Backend
) -> tuple[Params, PyTree]:
    """One update: (updates like the gradients, next state)."""
    if backend.cut and not acts_by_entry(optimizer, params):
        updates, state = optimizer.update(_gathered(gradients, backend), state, _gathered(params, backend))
        return updates._replace(layers=backend.scatter(updates.layers)), state
    updates, state = optimizer.update(gradients, state, params)
    return updates, place_optimizer(optimizer, state, params, backend)


def _gathered(params: Params, backend: Backend) -> Params:
    return params._replace(layers=backend.gather(params.layers))


def place_optimizer(optimizer: optax.GradientTransformation, state: PyTree, params: Params, backend: Backend) -> PyTree:
    """Spread what the optimiser keeps per layer as the layers are, and give the rest to all devices."""
    if backend.cut:
        return state
    by_slot = jax.tree.leaves(params.layers)
    if not by_slot:  # the hidden layers have nothing to train: frozen, or weights they close over
        return backend.replicate(state)
    slots = by_slot[0].shape[0]
    return map_optimizer(optimizer, state, params, slots, backend.scatter, backend.replicate)


def map_optimizer(
    optimizer: optax.GradientTransformation,
    state: PyTree,
    params: Params,
    slots: int,
    by_layer: Callable[[Any, int], Any],
    other: Callable[[Any], Any],
) -> PyTree:
    """Map over an optimiser's state: `by_layer(leaf, axis)` where a leaf's axis runs over the slots, else `other`."""
    layers = jax.tree.map(lambda _: slots, params.layers)
    sizes = Params(*(jax.tree.map(lambda _: None, part) for part in params))._replace(layers=layers)

    def one(leaf: Arrays, slots: int | None = None) -> Any:
        if leaf is None:  # in the place of a parameter the optimiser does not see
            return None
        if slots is None or slots not in leaf.shape:
            return other(leaf)
        return by_layer(leaf, leaf.shape.index(slots))

    return optax.tree_utils.tree_map_params(
        optimizer, one, state, sizes, transform_non_params=one, is_leaf=lambda x: x is None
    )


# Operations that compute every entry of the result from the same entry of the operands.
_BY_ENTRY = frozenset(
    "abs add add_any and cbrt ceil clamp convert_element_type copy cos div eq erf exp exp2 expm1 floor ge gt "
    "integer_pow is_finite le log log1p logistic lt max min mul ne neg nextafter not or pow rem round rsqrt select_n "
    "sign sin sqrt "
    "square stop_gradient sub tan tanh xor".split()
)


# Operations that do so if the operations within them do.
_CONTAINERS = frozenset("closed_call cond custom_jvp_call custom_vjp_call jit pjit scan while".split())


def acts_by_entry(optimizer: optax.GradientTransformation, params: Params) -> bool:
    """Whether every entry of an optimiser's update depends on that entry alone, so that blocks can be updated apart."""
    state = jax.eval_shape(optimizer.init, params)
    update = jax.make_jaxpr(lambda gradients, kept, own: optimizer.update(gradients, kept, own))
    return all(_by_entry(equation) for equation in _equations(update(params, state, params).jaxpr))


def _by_entry(equation: Any) -> bool:
    name = equation.primitive.name
    spreads_scalar = name == "broadcast_in_dim" and equation.invars[0].aval.shape == ()
    return name in _BY_ENTRY or name in _CONTAINERS or spreads_scalar


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from _equations(inner)
