"""Flax NNX: a stack of modules for `jm.scan`, `jm.propagate` and `jm.OneShot`. Flax 0.12 or later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax

from jaxmgrit._checks import check_layers, integer
from jaxmgrit.adapters.framework import check_version
from jaxmgrit.adapters.stack import is_list, refuse, scan_function, stack_layers, step_function, unlike
from jaxmgrit.training.problem import Problem
from jaxmgrit.training.state import Params

# First, since the import's own error would not say what to install.
check_version("flax")
from flax import nnx  # noqa: E402

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, State, StepSize

PyTree = Any
Module = TypeVar("Module", bound=nnx.Module)
Call = Callable[..., PyTree]

_REMEDY = (
    "run the layers by jm.scan and nnx.to_scan, whose outputs are the new state, or make them change nothing: "
    "module.eval(), or dropout by keys of your own."
)


def init_stack(make: Callable[[nnx.Rngs], Module], depth: int, rngs: nnx.Rngs) -> Module:
    """A module of `depth` layers, each initialised by random numbers of its own: every array has leading axis N.

    It is what `nnx.vmap` of the constructor with `nnx.split_rngs` makes; streams of dropout are split too.

    Args:
        make: (rngs) -> one layer, such as `lambda rngs: Block(64, rngs=rngs)`.
        depth: N, >= 1.
        rngs: which advance as for one layer.

    Raises:
        TypeError, ValueError: depth is not an integer >= 1.

    Example:
        >>> from flax import nnx
        >>> import jaxmgrit as jm
        >>> layers = jm.adapters.nnx.init_stack(lambda rngs: nnx.Linear(4, 4, rngs=rngs), 16, nnx.Rngs(0))
        >>> layers.kernel.shape
        (16, 4, 4)
    """
    integer("init_stack", "depth", depth, 1)
    return nnx.split_rngs(splits=depth)(nnx.vmap(make, in_axes=0, out_axes=0))(rngs)


def stack(layers: Sequence[Module]) -> Module:
    """A list of modules as one stacked module; the list's own arrays are copied.

    Args:
        layers: N >= 1 modules alike: of one class and structure, with the same shapes and dtypes.

    Raises:
        ValueError: no layers, a layer unlike the first, or a variable that two layers share (tied parameters, or one
            stream of random numbers: give each layer its own, or close over what is shared).

    Example:
        >>> from flax import nnx
        >>> import jaxmgrit as jm
        >>> rngs = nnx.Rngs(0)
        >>> jm.adapters.nnx.stack([nnx.Linear(4, 4, rngs=rngs) for _ in range(16)]).kernel.shape
        (16, 4, 4)
    """
    parts = [nnx.split(layer) for layer in layers]
    owner: dict[int, int] = {}
    for n, (layer, part) in enumerate(zip(layers, parts, strict=True)):
        if part[0] != parts[0][0] and type(layer) is not type(layers[0]):
            raise unlike(n, type(layer).__name__, type(layers[0]).__name__)
        # `nnx.split` sees one layer at a time: stacked, what two layers share would silently be two copies.
        for _, variable in nnx.iter_graph(layer):
            if isinstance(variable, nnx.Variable) and owner.setdefault(id(variable), n) != n:
                raise ValueError(
                    f"stack: layers {owner[id(variable)]} and {n} share a {type(variable).__name__}; give each its "
                    "own, or close over what they share."
                )
    states = stack_layers([state for _, state in parts])
    # After `stack_layers`, which names arrays that differ; here anything else does (activations, rates).
    for n, (graph, _) in enumerate(parts):
        if graph != parts[0][0]:
            raise unlike(n, str(graph), str(parts[0][0]))
    return nnx.merge(parts[0][0], states)


def to_scan(layers: nnx.Module, *, call: Call | None = None) -> tuple[Callable[..., tuple[PyTree, PyTree]], PyTree]:
    """(f, xs) for `jm.scan(f, u, xs)`, whose outputs are the state that the layers have changed.

    Batch norm's statistics, counters of dropout and whatever else a layer changes come out with leading axis N;
    `nnx.update(layers, outputs)` puts them into the stack, as running the layers one by one would have done. Layers
    that change nothing have outputs without leaves. Every solver sees the same dropout masks in every cycle.

    Args:
        layers: a stack of modules, from `init_stack`, `stack` or your own `nnx.vmap`.
        call: (module, u) -> u_next, or (module, u, h) where `jm.scan` is given h; None: `module(u)`, `module(u, h)`.
            `jm.adapters.residual` has the module give the increment.

    Returns:
        f and xs: the state of the stack (`nnx.State`), leaves (N, ...). Made inside the function that is
        differentiated, they are differentiated by `nnx.grad`.

    Raises:
        TypeError, ValueError: layers that are no stack.

    Example:
        >>> from flax import nnx
        >>> import jax.numpy as jnp, jaxmgrit as jm
        >>> layers = jm.adapters.nnx.init_stack(lambda rngs: nnx.BatchNorm(4, rngs=rngs), 16, nnx.Rngs(0))
        >>> f, xs = jm.adapters.nnx.to_scan(layers)
        >>> u, changed = jm.scan(f, jnp.ones((8, 4)), xs)
        >>> nnx.update(layers, changed)
    """
    return scan_function(_run(layers, call, "to_scan")), nnx.state(layers)


def to_propagate(layers: nnx.Module, *, call: Call | None = None) -> tuple[Callable[..., PyTree], PyTree]:
    """(step, theta) for `jm.propagate(step, theta, u0, h=h)`, of layers that change no state.

    Args:
        layers: a stack of modules, from `init_stack`, `stack` or your own `nnx.vmap`.
        call: (module, u, h) -> u_next; None: `module(u, h)`. `jm.adapters.residual`: u + h module(u).

    Returns:
        step and theta: the state of the stack (`nnx.State`), leaves (N, ...).

    Raises:
        TypeError, ValueError: layers that are no stack; when it runs, a layer that changes state (batch norm or dropout
            in training), which would be lost.

    Example:
        >>> from flax import nnx
        >>> import jax.numpy as jnp, jaxmgrit as jm
        >>> layers = jm.adapters.nnx.init_stack(lambda rngs: nnx.Linear(4, 4, rngs=rngs), 16, nnx.Rngs(0))
        >>> step, theta = jm.adapters.nnx.to_propagate(layers, call=jm.adapters.residual)
        >>> jm.propagate(step, theta, jnp.ones((8, 4)), h=1 / 16).shape
        (8, 4)
    """
    return step_function(_run(layers, call, "to_propagate"), "to_propagate", _REMEDY), nnx.state(layers)


def to_one_shot(
    opening: nnx.Module,
    layers: nnx.Module,
    closing: nnx.Module,
    loss: Callable[[Any, State, Arrays], tuple[Any, Any]],
    *,
    h: StepSize,
    call: Call | None = None,
    keys: bool = False,
    **options: Any,
) -> tuple[Problem, Params]:
    """(problem, params) for `jm.OneShot(problem, optimizer)` of a network of three modules.

    `put_back(params, opening, layers, closing)` puts trained parameters into the modules.

    Args:
        opening: (x) -> u0.
        layers: a stack of modules.
        closing: what `loss` is given.
        loss: (closing, u_final, y) -> (scalar, aux).
        h: step size, see `Problem`.
        call: (module, u, h) -> u_next; None: `module(u, h)`. `jm.adapters.residual`: u + h module(u).
        keys: whether the layers' streams of random numbers (dropout) start from the trainer's `key` in every iteration;
            where none is given, as by `evaluate`, the layers are in `eval()` mode.
        options: of `Problem`: `penalty`, `running_cost`.

    Raises:
        TypeError, ValueError: layers that are no stack, modules with state other than parameters and streams of random
            numbers (batch norm), which has no place in one-shot training; when it runs, random layers without `keys`.

    Example:
        >>> from flax import nnx
        >>> import jax.numpy as jnp, jaxmgrit as jm
        >>> rngs = nnx.Rngs(0)
        >>> opening, closing = nnx.Linear(2, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)
        >>> layers = jm.adapters.nnx.init_stack(lambda rngs: nnx.Linear(4, 4, rngs=rngs), 16, rngs)
        >>> problem, params = jm.adapters.nnx.to_one_shot(
        ...     opening, layers, closing, lambda closing, u, y: (jnp.mean((closing(u) - y) ** 2), None),
        ...     h=1 / 16, call=jm.adapters.residual,
        ... )
        >>> float(problem.evaluate(params, (jnp.ones((8, 2)), jnp.zeros((8, 1))))[0]) > 0
        True
    """
    name = "to_one_shot"
    opening_graph, opening_params, _ = _trained(opening, f"{name}: opening")
    closing_graph, closing_params, _ = _trained(closing, f"{name}: closing")
    training = _run(layers, call, name)
    _, params, streams = _trained(layers, f"{name}: layers", streams=True)
    # A copy, since `eval` changes modules in place.
    resting = nnx.clone(layers)
    resting.eval()
    evaluating = _run(resting, call, name)
    # One layer's for all: with `keys` every step starts them anew, without it no layer may draw.
    streams = jax.tree.map(lambda x: x[0], streams)

    def step(theta: PyTree, u: State, h: StepSize) -> PyTree:
        u_next, changed = training(nnx.merge_state(theta, streams), u, h)
        refuse(
            changed, name, "give keys=True, and the trainer's step a key, for dropout; batch norm has no place here."
        )
        return u_next

    def random_step(theta: PyTree, u: State, h: StepSize, common: Any) -> PyTree:
        run = evaluating if common.key is None else training
        u_next, changed = run(nnx.merge_state(theta, _started(streams, common.key)), u, h)
        # Streams that have moved on are no loss: the next step starts them anew.
        _, others = nnx.split_state(changed, nnx.RngState, ...)
        refuse(others, name, "one-shot training has no place for it.")
        return u_next

    problem = Problem(
        lambda params, x: nnx.merge(opening_graph, params)(x),
        random_step if keys else step,
        lambda params, u, y: loss(nnx.merge(closing_graph, params), u, y),
        h,
        **options,
    )
    return problem, Params(opening_params, params, closing_params)


def put_back(params: Params, opening: nnx.Module, layers: nnx.Module, closing: nnx.Module) -> None:
    """Put trained parameters (`trainer.params(state)`) into the modules they were made from by `to_one_shot`.

    Args:
        params: of those modules.
        opening: changed in place, as are the others.
        layers: the stack.
        closing: the last module.

    Example:
        >>> from flax import nnx
        >>> import jaxmgrit as jm
        >>> rngs = nnx.Rngs(0)
        >>> modules = [nnx.Linear(4, 4, rngs=rngs) for _ in range(3)]
        >>> jm.adapters.nnx.put_back(jm.Params(*(nnx.state(module) for module in modules)), *modules)
    """
    for module, state in zip((opening, layers, closing), params, strict=False):
        nnx.update(module, state)


def _trained(module: nnx.Module, name: str, streams: bool = False) -> tuple[Any, PyTree, PyTree]:
    """Graph, parameters and streams of random numbers of a module without any other state."""
    parts: Any = nnx.split(module, nnx.Param, nnx.RngState, ...)
    graph, params, random, others = parts
    refuse(others if streams else nnx.merge_state(random, others), name, "one-shot training has no place for it.")
    return graph, params, random


def _started(streams: PyTree, key: jax.Array | None) -> PyTree:
    """Streams of random numbers that start from a key."""
    if key is None:
        return streams
    leaves, structure = jax.tree.flatten(streams)
    started = [
        jax.random.fold_in(key, n) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf * 0
        for n, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, started)


def _run(layers: nnx.Module, call: Call | None, name: str) -> Callable[..., tuple[PyTree, PyTree]]:
    """The module as a function of its arrays."""
    is_list(layers, name, (nnx.List,))
    if not isinstance(layers, nnx.Module):
        raise TypeError(f"{name}: layers={layers!r} is not an nnx.Module; give a stack of them: init_stack, stack.")
    graph, state = nnx.split(layers)
    check_layers(state, f"{name}: layers")

    def run(x: Arrays, u: State, *h: StepSize) -> tuple[PyTree, PyTree]:
        # By identity: the values of traced arrays cannot be compared.
        given = {path: jax.tree.leaves(variable) for path, variable in nnx.to_flat_state(x)}
        module = nnx.merge(graph, jax.tree.map(lambda leaf: leaf, x))  # variables of its own, which the call may change
        u_next = module(u, *h) if call is None else call(module, u, *h)
        after = nnx.to_flat_state(nnx.state(module))
        return u_next, nnx.from_flat_state([(path, new) for path, new in after if not _same(given.get(path), new)])

    return run


def _same(given: list[Any] | None, variable: Any) -> bool:
    """Whether a variable holds the very arrays it was given."""
    now = jax.tree.leaves(variable)
    return given is not None and len(given) == len(now) and all(x is y for x, y in zip(given, now, strict=True))
