"""Flax linen: a stack of variables for `jm.scan`, `jm.propagate` and `jm.OneShot`. Flax 0.12 or later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxmgrit._checks import check_layers, integer
from jaxmgrit._types import Arrays, Layers, State, StepSize
from jaxmgrit.adapters.framework import check_version
from jaxmgrit.adapters.stack import is_list, scan_function, step_function

check_version("flax")
from flax import linen  # noqa: E402

PyTree = Any
Call = Callable[..., PyTree]

_REMEDY = (
    "run the layers by jm.scan and linen.to_scan, whose outputs are the new state, or make them change nothing "
    "(use_running_average=True)."
)


def init_stack(module: linen.Module, depth: int, key: jax.Array, *args: Arrays, **options: Any) -> dict[str, PyTree]:
    """The variables of `depth` layers, each initialised from a key of its own: every leaf with leading axis N.

    Args:
        module: one layer.
        depth: N, >= 1.
        key: of which layer n gets `jax.random.split(key, N)[n]`.
        args: what the module is called with: one batch of states.
        options: keyword arguments of that call, or `method`.

    Raises:
        TypeError, ValueError: depth is not an integer >= 1.

    Example:
        >>> from flax import linen
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> variables = jm.adapters.linen.init_stack(linen.Dense(4), 16, jax.random.key(0), jnp.ones((8, 4)))
        >>> variables["params"]["kernel"].shape
        (16, 4, 4)
    """
    integer("init_stack", "depth", depth, 1)
    init = jax.vmap(lambda key: module.init(key, *args, **options))
    return dict(init(jax.random.split(key, depth)))


def to_scan(
    module: linen.Module,
    variables: Layers,
    *,
    rngs: Mapping[str, jax.Array] | None = None,
    call: Call | None = None,
) -> tuple[Callable[..., tuple[PyTree, PyTree]], PyTree]:
    """(f, xs) for `jm.scan(f, u, xs)`, whose outputs are the collections that the layers may change.

    All collections but "params" may be changed, as by `module.apply(..., mutable=...)`; they come out with leading axis
    N: `variables | outputs` are the variables after the step. Layers with parameters only have outputs without leaves.

    Args:
        module: one layer.
        variables: of all layers, leaves (N, ...): from `init_stack`, `jm.adapters.stack_layers` or `linen.scan`.
        rngs: a key for each stream of random numbers, {"dropout": key}; layer n gets `jax.random.split(key, N)[n]`.
        call: (module, u) -> u_next, or (module, u, h) where `jm.scan` is given h; None: `module(u)`, `module(u, h)`.
            `jm.adapters.residual` has the module give the increment.

    Returns:
        f and xs: (variables, keys), to be made inside the function that is differentiated.

    Raises:
        TypeError, ValueError: a module that is none, variables that are no stack.

    Example:
        >>> from flax import linen
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> norm, u = linen.BatchNorm(use_running_average=False), jnp.ones((8, 4))
        >>> variables = jm.adapters.linen.init_stack(norm, 16, jax.random.key(0), u)
        >>> f, xs = jm.adapters.linen.to_scan(norm, variables)
        >>> u, changed = jm.scan(f, u, xs)
        >>> variables = variables | changed
    """
    run, xs = _run(module, variables, rngs, call, "to_scan", all_mutable=True)
    return scan_function(run), xs


def to_propagate(
    module: linen.Module,
    variables: Layers,
    *,
    rngs: Mapping[str, jax.Array] | None = None,
    call: Call | None = None,
) -> tuple[Callable[..., PyTree], PyTree]:
    """(step, theta) for `jm.propagate(step, theta, u0, h=h)`, of layers that change no state; dropout by keys works.

    Args:
        module: one layer.
        variables: of all layers, leaves (N, ...): from `init_stack`, `jm.adapters.stack_layers` or `linen.scan`.
        rngs: a key for each stream of random numbers, {"dropout": key}; layer n gets `jax.random.split(key, N)[n]`.
        call: (module, u, h) -> u_next; None: `module(u, h)`. `jm.adapters.residual`: u + h module(u).

    Returns:
        step and theta: (variables, keys).

    Raises:
        TypeError, ValueError: a module that is none, variables that are no stack; when it runs, a layer that changes
            state (batch norm in training), which would be lost.

    Example:
        >>> from flax import linen
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> dense, u0 = linen.Dense(4), jnp.ones((8, 4))
        >>> variables = jm.adapters.linen.init_stack(dense, 16, jax.random.key(0), u0)
        >>> step, theta = jm.adapters.linen.to_propagate(dense, variables, call=jm.adapters.residual)
        >>> jm.propagate(step, theta, u0, h=1 / 16).shape
        (8, 4)
    """
    run, theta = _run(module, variables, rngs, call, "to_propagate", all_mutable=False)
    return step_function(run, "to_propagate", _REMEDY), theta


def _run(
    module: linen.Module,
    variables: Layers,
    rngs: Mapping[str, jax.Array] | None,
    call: Call | None,
    name: str,
    all_mutable: bool,
) -> tuple[Callable[..., tuple[PyTree, PyTree]], PyTree]:
    """The module as a function of its variables and keys, and those of all layers."""
    is_list(variables, name)
    if not isinstance(module, linen.Module):
        raise TypeError(f"{name}: module={module!r} is not a linen.Module; give one layer, and the stack's variables.")
    depth = check_layers(variables, f"{name}: variables")
    keys = {stream: jax.random.split(key, depth) for stream, key in (rngs or {}).items()}
    mutable = [collection for collection in variables if collection != "params"]

    def run(x: Arrays, u: State, *h: StepSize) -> tuple[PyTree, PyTree]:
        own, streams = x
        u_next, after = module.apply(own, u, *h, rngs=streams, mutable=mutable, method=call)
        if all_mutable:
            return u_next, dict(after)
        given = {id(leaf) for leaf in jax.tree.leaves(own)}
        return u_next, {name: _changed(collection, given) for name, collection in after.items()}

    return run, (variables, keys)


def _changed(collection: PyTree, given: set[int]) -> PyTree:
    """The entries of a collection that are not the very arrays it was given."""
    return jax.tree.map(lambda leaf: None if id(leaf) in given else leaf, collection)
