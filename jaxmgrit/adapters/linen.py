"""Flax linen: a stack of variables for `jm.scan`, `jm.propagate` and `jm.OneShot`. Flax 0.12 or later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax

from jaxmgrit._checks import check_layers, integer
from jaxmgrit.adapters.framework import check_version
from jaxmgrit.adapters.stack import is_list, refuse, scan_function, step_function
from jaxmgrit.training.problem import Problem
from jaxmgrit.training.state import Params

# First, since the import's own error would not say what to install.
check_version("flax")
from flax import linen  # noqa: E402

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Layers, State, StepSize

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


def to_one_shot(
    opening: tuple[linen.Module, PyTree],
    layers: tuple[linen.Module, PyTree],
    closing: tuple[linen.Module, PyTree],
    loss: Callable[[Any, State, Arrays], tuple[Any, Any]],
    *,
    h: StepSize,
    call: Call | None = None,
    stream: str | None = None,
    inference: linen.Module | None = None,
    **options: Any,
) -> tuple[Problem, Params]:
    """(problem, params) for `jm.OneShot(problem, optimizer)` of three modules; `params` are their variables.

    Args:
        opening: (module, variables), (x) -> u0.
        layers: (module of one layer, variables of the stack).
        closing: (module, variables), what `loss` is given, bound to its variables.
        loss: (closing, u_final, y) -> (scalar, aux).
        h: step size, see `Problem`.
        call: (module, u, h) -> u_next; None: `module(u, h)`. `jm.adapters.residual`: u + h module(u).
        stream: of random numbers, "dropout" say, that the layers draw from: it starts from the trainer's `key`.
        inference: the layer's module where there is no key, as in `evaluate`; None: the same one.
        options: of `Problem`: `penalty`, `running_cost`.

    Raises:
        TypeError, ValueError: variables that are no stack, or hold other collections than "params" (batch norm), which
            have no place in one-shot training.

    Example:
        >>> from flax import linen
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> x, u, key = jnp.ones((8, 2)), jnp.ones((8, 4)), jax.random.key(0)
        >>> block, ends = linen.Dense(4), (linen.Dense(4), linen.Dense(1))
        >>> problem, params = jm.adapters.linen.to_one_shot(
        ...     (ends[0], ends[0].init(key, x)),
        ...     (block, jm.adapters.linen.init_stack(block, 16, key, u)),
        ...     (ends[1], ends[1].init(key, u)),
        ...     lambda closing, u, y: (jnp.mean((closing(u) - y) ** 2), None),
        ...     h=1 / 16, call=jm.adapters.residual,
        ... )
        >>> float(problem.evaluate(params, (x, jnp.zeros((8, 1))))[0]) > 0
        True
    """
    for what, (_, variables) in zip(("opening", "layers", "closing"), (opening, layers, closing), strict=True):
        others = {collection: x for collection, x in variables.items() if collection != "params"}
        refuse(others, f"to_one_shot: {what}", "one-shot training has no place for it: use group or layer norm.")
    module, variables = layers
    run, _ = _run(module, variables, None, call, "to_one_shot", all_mutable=False)
    resting, _ = _run(inference or module, variables, None, call, "to_one_shot", all_mutable=False)

    def random_step(theta: PyTree, u: State, h: StepSize, common: Any) -> PyTree:
        if common.key is None:
            return resting((theta, {}), u, h)[0]
        return run((theta, {stream: common.key}), u, h)[0]

    problem = Problem(
        lambda params, x: opening[0].apply(params, x),
        random_step if stream else lambda theta, u, h: run((theta, {}), u, h)[0],
        lambda params, u, y: loss(closing[0].bind(params), u, y),
        h,
        **options,
    )
    return problem, Params(opening[1], variables, closing[1])


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
        # As `method` a call gets the bound module, parameters and streams included.
        u_next, after = module.apply(own, u, *h, rngs=streams, mutable=mutable, method=call)
        if all_mutable:
            return u_next, dict(after)
        # By identity: the values of traced arrays cannot be compared.
        given = {id(leaf) for leaf in jax.tree.leaves(own)}
        return u_next, {name: _changed(collection, given) for name, collection in after.items()}

    return run, (variables, keys)


def _changed(collection: PyTree, given: set[int]) -> PyTree:
    """The entries of a collection that are not the very arrays it was given."""
    return jax.tree.map(lambda leaf: None if id(leaf) in given else leaf, collection)
