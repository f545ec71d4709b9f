"""Stacks of layers: one pytree whose leaves have the leading axis N; and what all adapters make of a module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmgrit._checks import Explained, describe, integer

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Layers, State, StepSize

PyTree = Any

# (what belongs to one layer, state, *h) -> (next state, what the layer changed of its own)
Run = Callable[..., tuple[PyTree, PyTree]]


def init_layers(init: Callable[[jax.Array], PyTree], depth: int, key: jax.Array) -> PyTree:
    """The parameters of `depth` layers of one kind, initialised each from a key of its own: leaves (N, ...).

    For plain pytrees; the modules `nnx`, `linen` and `equinox` have an `init_stack` of their framework.

    Args:
        init: (key) -> the parameters of one layer, any pytree of arrays.
        depth: N, >= 1.
        key: of which layer n gets `jax.random.split(key, N)[n]`.

    Raises:
        TypeError, ValueError: depth is not an integer >= 1.

    Example:
        >>> import jax, jaxmgrit as jm
        >>> init = lambda key: {"w": 0.1 * jax.random.normal(key, (4, 4))}
        >>> jm.adapters.init_layers(init, 16, jax.random.key(0))["w"].shape
        (16, 4, 4)
    """
    integer("init_layers", "depth", depth, 1)
    return jax.vmap(init)(jax.random.split(key, depth))


def stack_layers(layers: Sequence[PyTree]) -> PyTree:
    """A list of layers as one stack: every leaf with leading axis N.

    For plain pytrees and variables of linen; `nnx.stack` and `equinox.stack` do it for modules.

    Args:
        layers: N >= 1 pytrees of one structure, with the same shapes and dtypes.

    Raises:
        ValueError: no layers, or a layer that is unlike the first: networks whose layers differ in width are a stack
            per width, each with a `jm.propagate` or `jm.scan` of its own.

    Example:
        >>> import jax.numpy as jnp, jaxmgrit as jm
        >>> jm.adapters.stack_layers([{"w": jnp.ones((4, 4))}, {"w": jnp.zeros((4, 4))}])["w"].shape
        (2, 4, 4)
    """
    if not layers:
        raise ValueError("stack: there are no layers; give at least one.")
    first = _shapes(layers[0])
    structure: Any = jax.tree.structure(layers[0])
    for n, layer in enumerate(layers):
        own = _shapes(layer)
        differing = [path for path in own.keys() | first.keys() if own.get(path) != first.get(path)]
        if differing or structure != jax.tree.structure(layer):
            own, other = ({path: kind.get(path, "nothing") for path in sorted(differing)} for kind in (own, first))
            raise unlike(n, str(own or jax.tree.structure(layer)), str(other or structure))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def residual(module: Callable[..., State], u: State, h: StepSize = 1.0, **given: Any) -> State:
    """The step u + h F(u), where the module is F: the `call` of residual layers; h = 1 where there is none.

    Give it as `call=jm.adapters.residual` to the adapters' functions. A step size that is taken this way makes coarse
    steps by a larger h possible.

    Args:
        module: F, one layer; returns the state's increment alone.
        u: state, any pytree.
        h: step size of the layer.
        given: handed on, such as a dropout's `key`.

    Example:
        >>> import jax.numpy as jnp, jaxmgrit as jm
        >>> float(jm.adapters.residual(jnp.cos, jnp.zeros(()), 0.5))
        0.5
    """
    return jax.tree.map(lambda x, dx: x + h * dx, u, module(u, **given))


def _shapes(layer: Layers) -> dict[str, str]:
    return {jax.tree_util.keystr(path): describe(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(layer)}


def unlike(n: int, kind: str, first: str) -> ValueError:
    """The error about a layer that cannot be stacked."""
    return ValueError(
        f"stack: layer {n} is unlike layer 0: {kind}, where layer 0 has {first}. A stack has layers of one kind; make "
        "a stack of each kind, and run them one after the other."
    )


def is_list(layers: PyTree, name: str, kinds: tuple[type, ...] = ()) -> None:
    """Raise a TypeError where layers are given as a list, whose modules have axes that say nothing of the depth."""
    if isinstance(layers, (list, tuple, *kinds)):
        raise TypeError(f"{name}: the layers are a {type(layers).__name__}; give one stacked module: stack(layers).")


def scan_function(run: Run) -> Callable[..., tuple[PyTree, PyTree]]:
    """f(carry, x) or f(carry, x, h) of `jm.scan`, whose outputs are what the layers changed of their own."""

    def f(carry: State, x: Arrays, *h: StepSize) -> tuple[PyTree, PyTree]:
        return run(x, carry, *h)

    return f


def step_function(run: Run, name: str, remedy: str) -> Callable[..., PyTree]:
    """step(theta, u, h) of `jm.propagate`, which has no place for what a layer changes of its own: that is refused."""

    def step(theta: Layers, u: State, h: StepSize) -> PyTree:
        u_next, changed = run(theta, u, h)
        refuse(changed, name, remedy)
        return u_next

    return step


def refuse(changed: PyTree, name: str, remedy: str) -> None:
    """Raise a ValueError where a layer's state would be lost."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(changed)]
    if paths:
        # An `Explained` error is handed on as it is, where others of a step are wrapped.
        raise Explained(f"{name}: a layer changes state that would be lost ({', '.join(paths)}); {remedy}")
