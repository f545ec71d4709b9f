"""Equinox: a stack of modules for `jm.scan`, `jm.propagate` and `jm.OneShot`. Equinox 0.13 or later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax

from jaxmgrit._checks import Explained, check_layers, integer
from jaxmgrit.adapters.framework import check_version
from jaxmgrit.adapters.stack import is_list, scan_function, stack_layers, step_function, unlike
from jaxmgrit.training.problem import Problem
from jaxmgrit.training.state import Params

# First, since the import's own error would not say what to install.
check_version("equinox")
import equinox as eqx  # noqa: E402

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, State, StepSize

PyTree = Any
Module = TypeVar("Module", bound=eqx.Module)
Call = Callable[..., PyTree]

_REMEDY = (
    "run the layers by jm.scan and equinox.to_scan, whose outputs are the new state; layers in inference mode change "
    "none: give a call that returns u_next alone."
)


def init_stack(make: Callable[[jax.Array], Module], depth: int, key: jax.Array) -> Module:
    """A module of `depth` layers, each initialised from a key of its own: every array has leading axis N.

    Layers with state (batch norm): `eqx.filter_vmap(eqx.nn.make_with_state(Block))(keys)` gives the stack and its
    state; it is what this does with a `make` that returns both.

    Args:
        make: (key) -> one layer, such as `lambda key: Block(64, key=key)` or `eqx.nn.make_with_state(Block)`.
        depth: N, >= 1.
        key: of which layer n gets `jax.random.split(key, N)[n]`.

    Raises:
        TypeError, ValueError: depth is not an integer >= 1.

    Example:
        >>> import equinox as eqx, jax, jaxmgrit as jm
        >>> make = lambda key: eqx.nn.Linear(4, 4, key=key)
        >>> jm.adapters.equinox.init_stack(make, 16, jax.random.key(0)).weight.shape
        (16, 4, 4)
    """
    integer("init_stack", "depth", depth, 1)
    return eqx.filter_vmap(make)(jax.random.split(key, depth))


def stack(layers: Sequence[Module]) -> Module:
    """A list of modules as one stacked module.

    Args:
        layers: N >= 1 modules alike: of one structure, with the same shapes and dtypes, and whose leaves that are not
            arrays (activations, probabilities) are equal.

    Raises:
        ValueError: no layers, or a layer unlike the first.

    Example:
        >>> import equinox as eqx, jax, jaxmgrit as jm
        >>> keys = jax.random.split(jax.random.key(0), 16)
        >>> jm.adapters.equinox.stack([eqx.nn.Linear(4, 4, key=key) for key in keys]).weight.shape
        (16, 4, 4)
    """
    parts = [eqx.partition(layer, eqx.is_array) for layer in layers]
    arrays = stack_layers([part[0] for part in parts])
    # After `stack_layers`, which names arrays that differ; here anything else does (activations, rates).
    for n, (_, static) in enumerate(parts):
        if not eqx.tree_equal(static, parts[0][1]):
            raise unlike(n, str(static), str(parts[0][1]))
    return eqx.combine(arrays, parts[0][1])


def to_scan(
    layers: eqx.Module, *, state: eqx.nn.State | None = None, key: jax.Array | None = None, call: Call | None = None
) -> tuple[Callable[..., tuple[PyTree, PyTree]], PyTree]:
    """(f, xs) for `jm.scan(f, u, xs)`, whose outputs are the layers' new state where they have one.

    The arrays of the stack are xs; all else (activations, probabilities) is put back in f.

    Args:
        layers: a stack of modules, from `init_stack`, `stack` or your own `eqx.filter_vmap`.
        state: of the stack, leaves (N, ...), where layers have one (batch norm): the outputs are the new one.
        key: of which layer n gets `jax.random.split(key, N)[n]`, the same in every cycle; for dropout.
        call: (module, u[, h][, state][, key=key]) -> u_next, or (u_next, state): with h where `jm.scan` is given it,
            state and key where they are given here. None: the module itself. Modules for one sample are mapped over
            the batch here: `lambda block, u, key: jax.vmap(block)(u, key=jax.random.split(key, len(u)))`.

    Returns:
        f and xs: (arrays, state, keys), to be made inside the function that is differentiated.

    Raises:
        TypeError, ValueError: layers that are no stack, or have a state that is not given or not returned.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, jaxmgrit as jm
        >>> make = lambda key: eqx.nn.Linear(4, 4, key=key)
        >>> layers = jm.adapters.equinox.init_stack(make, 16, jax.random.key(0))
        >>> f, xs = jm.adapters.equinox.to_scan(layers, call=lambda layer, u: jax.vmap(layer)(u))
        >>> u, _ = jm.scan(f, jnp.ones((8, 4)), xs)
    """
    run, xs = _run(layers, state, key, call, "to_scan", keep_state=True)
    return scan_function(run), xs


def to_propagate(
    layers: eqx.Module, *, state: eqx.nn.State | None = None, key: jax.Array | None = None, call: Call | None = None
) -> tuple[Callable[..., PyTree], PyTree]:
    """(step, theta) for `jm.propagate(step, theta, u0, h=h)`, of layers that change no state; dropout by keys works.

    Args:
        layers: a stack of modules, from `init_stack`, `stack` or your own `eqx.filter_vmap`.
        state: of the stack, which must not be changed: give a call that returns u_next alone (inference).
        key: of which layer n gets `jax.random.split(key, N)[n]`, the same in every cycle; for dropout.
        call: (module, u, h[, state][, key=key]) -> u_next; None: the module itself. `jm.adapters.residual`: u + h
            module(u).

    Returns:
        step and theta: (arrays, state, keys).

    Raises:
        TypeError, ValueError: layers that are no stack, or have a state that is not given; when it runs, a layer that
            returns state, which would be lost.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, jaxmgrit as jm
        >>> layers = jm.adapters.equinox.init_stack(lambda key: eqx.nn.Linear(4, 4, key=key), 16, jax.random.key(0))
        >>> call = lambda layer, u, h: u + h * jax.vmap(layer)(u)
        >>> step, theta = jm.adapters.equinox.to_propagate(layers, call=call)
        >>> jm.propagate(step, theta, jnp.ones((8, 4)), h=1 / 16).shape
        (8, 4)
    """
    run, theta = _run(layers, state, key, call, "to_propagate", keep_state=False)
    return step_function(run, "to_propagate", _REMEDY), theta


def to_one_shot(
    opening: eqx.Module,
    layers: eqx.Module,
    closing: eqx.Module,
    loss: Callable[[Any, State, Arrays], tuple[Any, Any]],
    *,
    h: StepSize,
    call: Call | None = None,
    keys: bool = False,
    **options: Any,
) -> tuple[Problem, Params]:
    """(problem, params) for `jm.OneShot(problem, optimizer)` of a network of three modules.

    `put_back(params, opening, layers, closing)` are the modules with trained parameters.

    Args:
        opening: (x) -> u0, of a batch.
        layers: a stack of modules.
        closing: what `loss` is given.
        loss: (closing, u_final, y) -> (scalar, aux).
        h: step size, see `Problem`.
        call: (module, u, h[, key=key]) -> u_next; None: the module itself. `jm.adapters.residual`: u + h module(u).
        keys: whether the layers are given a `key`, which the trainer's step must have; where there is none, as in
            `evaluate`, they are in `inference_mode` and get `key=None`.
        options: of `Problem`: `penalty`, `running_cost`.

    Raises:
        TypeError, ValueError: layers that are no stack; modules with state (batch norm), which has no place in one-shot
            training.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, jaxmgrit as jm
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> opening, closing = eqx.nn.Linear(2, 4, key=keys[0]), eqx.nn.Linear(4, 1, key=keys[1])
        >>> layers = jm.adapters.equinox.init_stack(lambda key: eqx.nn.Linear(4, 4, key=key), 16, keys[2])
        >>> problem, params = jm.adapters.equinox.to_one_shot(
        ...     jax.vmap(opening), layers, closing,
        ...     lambda closing, u, y: (jnp.mean((jax.vmap(closing)(u) - y) ** 2), None),
        ...     h=1 / 16, call=lambda layer, u, h: u + h * jax.vmap(layer)(u),
        ... )
        >>> float(problem.evaluate(params, (jnp.ones((8, 2)), jnp.zeros((8, 1))))[0]) > 0
        True
    """
    for module in (opening, layers, closing):
        _check_state(module, None, "to_one_shot", "use group or layer norm: one-shot training has no place for state.")
    run, (arrays, _, _) = _run(layers, None, None, call, "to_one_shot", keep_state=False)
    resting, _ = _run(eqx.nn.inference_mode(layers), None, None, call, "to_one_shot", keep_state=False)
    ends, functions = zip(*(eqx.partition(module, eqx.is_array) for module in (opening, closing)), strict=True)

    def random_step(theta: PyTree, u: State, h: StepSize, common: Any) -> PyTree:
        if common.key is None:
            return resting((theta, None, _NO_KEY), u, h)[0]
        return run((theta, None, common.key), u, h)[0]

    problem = Problem(
        lambda params, x: eqx.combine(params, functions[0])(x),
        random_step if keys else lambda theta, u, h: run((theta, None, None), u, h)[0],
        lambda params, u, y: loss(eqx.combine(params, functions[1]), u, y),
        h,
        **options,
    )
    return problem, Params(ends[0], arrays, ends[1])


def put_back(params: Params, opening: Module, layers: Module, closing: Module) -> tuple[Module, Module, Module]:
    """The modules, as given to `to_one_shot`, with trained parameters (`trainer.params(state)`) in them.

    Args:
        params: of those modules.
        opening: the first module, which stays as it is, as do the others.
        layers: the stack.
        closing: the last module.

    Example:
        >>> import equinox as eqx, jax, jaxmgrit as jm
        >>> modules = [eqx.nn.Linear(4, 4, key=key) for key in jax.random.split(jax.random.key(0), 3)]
        >>> params = jm.Params(*(eqx.filter(module, eqx.is_array) for module in modules))
        >>> modules = jm.adapters.equinox.put_back(params, *modules)
    """
    first, stack, last = (
        eqx.combine(arrays, eqx.filter(module, eqx.is_array, inverse=True))
        for arrays, module in zip(params, (opening, layers, closing), strict=False)
    )
    return first, stack, last


_NO_KEY = "none"  # of layers in inference mode that are called with key=None


def _run(
    layers: eqx.Module,
    state: eqx.nn.State | None,
    key: jax.Array | None,
    call: Call | None,
    name: str,
    keep_state: bool,
) -> tuple[Callable[..., tuple[PyTree, PyTree]], PyTree]:
    """The module as a function of its arrays, state and key, and those of all layers."""
    is_list(layers, name)
    remedy = "give state=..., which init_stack(eqx.nn.make_with_state(Block), ...) returns beside the layers."
    _check_state(layers, state, name, remedy)
    arrays, static = eqx.partition(layers, eqx.is_array)
    depth = check_layers((arrays, state), f"{name}: layers")
    keys = None if key is None else jax.random.split(key, depth)

    def run(x: Arrays, u: State, *h: StepSize) -> tuple[PyTree, PyTree]:
        own, own_state, own_key = x
        module = eqx.combine(own, static)
        # As in Equinox's own layers: the state after the inputs, the key by name.
        positional = h if own_state is None else (*h, own_state)
        keywords = {} if own_key is None else {"key": None if own_key is _NO_KEY else own_key}
        result = module(u, *positional, **keywords) if call is None else call(module, u, *positional, **keywords)
        # A network's state may itself be a pair: only an `eqx.nn.State` tells (u_next, state).
        returned = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], eqx.nn.State)
        if returned:
            return result
        if keep_state and own_state is not None:
            raise Explained(f"{name}: the layers have state, but none is returned; return (u_next, state).")
        return result, None

    return run, (arrays, state, keys)


def _check_state(layers: PyTree, state: eqx.nn.State | None, name: str, remedy: str) -> None:
    """Raise a ValueError where layers have state that is not given."""
    if state is not None and not isinstance(state, eqx.nn.State):
        raise TypeError(f"{name}: state={state!r} is not an eqx.nn.State, such as make_with_state returns.")
    # A StateIndex is a module: unless it counts as a leaf, only what is inside it would be seen.
    leaves = jax.tree_util.tree_leaves_with_path(layers, is_leaf=lambda x: isinstance(x, eqx.nn.StateIndex))
    paths = [jax.tree_util.keystr(path) for path, leaf in leaves if isinstance(leaf, eqx.nn.StateIndex)]
    if paths and state is None:
        raise ValueError(f"{name}: the layers have state ({', '.join(paths)}) that is not given; {remedy}")
