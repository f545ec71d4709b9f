"""Checks of what the user hands over, before anything is compiled; every message says what was expected."""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmgrit._pytree import is_inexact, real_dtype, strong

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Layers, State, StepSize

PyTree = Any


class Explained(ValueError):
    """An error of a user's function that says by itself what is wrong and what helps."""


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path) or "(the array itself)"


def describe(tree: Arrays) -> str:
    """The structure, shapes and dtypes of a pytree, for messages."""
    return str(jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", tree))


def alike(a: Arrays, b: Arrays) -> bool:
    """Whether two pytrees have the same structure, shapes and dtypes; a weak dtype of the second is left open."""
    one: Any = jax.tree.structure(a)
    return bool(one == jax.tree.structure(b)) and all(
        jnp.shape(x) == jnp.shape(y) and (jnp.result_type(x) == jnp.result_type(y) or getattr(y, "weak_type", False))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def check_layers(theta: Layers, name: str = "theta", least: int = 1) -> int:
    """The number of layers, at least `least`: the common leading axis of all leaves.

    Raises:
        ValueError: no leaves, a leaf without axes, or leading axes that differ.
        TypeError: a leaf is not an array.
    """
    leaves = jax.tree_util.tree_leaves_with_path(theta)
    if not leaves:
        raise ValueError(
            f"{name} has no leaves, so the number of layers is unknown; give at least one array with leading axis N "
            "(in training, jm.Problem(layers=N) says it where no parameter belongs to one layer)."
        )
    sizes: dict[str, int] = {}
    for path, leaf in leaves:
        if not hasattr(leaf, "shape"):
            raise TypeError(f"{name}{_path(path)}={leaf!r} is not an array; {_not_an_array(leaf)}")
        if not leaf.shape:
            raise ValueError(
                f"{name}{_path(path)} has no axes; every leaf of {name} needs the leading axis N (one entry per "
                "layer): repeat it for every layer, or close over it in the step (in training: jm.Params(shared=...))."
            )
        sizes[_path(path)] = leaf.shape[0]
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name}{path}: {size}" for path, size in sizes.items())
        raise ValueError(
            f"the leaves of {name} have different leading axes ({listed}); all must be N, the number of layers. "
            "What all layers share the step closes over (in training: jm.Params(shared=...))." + _if_a_list(theta)
        )
    layers = next(iter(sizes.values()))
    if layers < least:
        raise ValueError(f"{name} has {layers} layers (leading axis {layers}); at least {least} is needed.")
    return layers


def _not_an_array(leaf: Arrays) -> str:
    if callable(leaf):
        return (
            "functions are not parameters: keep the arrays alone (equinox.partition(module, equinox.is_array), say) "
            "and put the rest back inside the step."
        )
    return "stack the layers' values along a leading axis N."


def check_state(u0: State, name: str = "u0") -> PyTree:
    """The state as arrays of definite dtype.

    Raises:
        ValueError: no leaves.
        TypeError: a leaf is not floating point or complex.
    """
    leaves = jax.tree_util.tree_leaves_with_path(u0)
    if not leaves:
        raise ValueError(f"{name} has no leaves; a state is a pytree of one or more floating-point arrays.")
    check_carry(u0, name)
    for path, leaf in leaves:
        if not is_inexact(leaf):
            raise TypeError(
                f"{name}{_path(path)} has dtype {jnp.result_type(leaf)}; a state's leaves must be floating point (it "
                "is corrected by differences): convert it, carry what is not a number in theta, or leave out solver= "
                "and adjoint= on one device, where jm.propagate and jm.scan carry integers and keys as jax.lax.scan "
                "does."
            )
    return strong(u0)


def check_carry(carry: State, name: str) -> None:
    """Raise a TypeError unless every leaf is an array or a number."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, numbers.Number):
            raise TypeError(f"{name}{_path(path)}={leaf!r} is not an array; {_not_an_array(leaf)}")


def check_like(given: Arrays, expected: Arrays, name: str, remedy: str) -> None:
    """Raise a ValueError unless structure, shapes and dtypes of `given` are those of `expected`."""
    if not alike(given, expected):
        raise ValueError(f"{name} does not fit: expected {describe(expected)}, given {describe(given)}. {remedy}")


def check_step_size(h: StepSize, layers: int, state: State) -> tuple[float | None, Any, Any]:
    """Sort a step size into (Python number, traced or array scalar, one per layer): exactly one is not None.

    Raises:
        ValueError: wrong shape, or not finite (where the value is known).
        TypeError: not a real number.
    """
    if h is None:
        raise TypeError("h=None is not a step size; give a scalar or one step size per layer, T/N for final time T.")
    # A Python number stays one, since a step may branch on it; NumPy's scalars, Real too, become arrays.
    if isinstance(h, numbers.Real) and not isinstance(h, (bool, np.generic)):
        value = float(h)
        if not math.isfinite(value):
            raise ValueError(f"h={h} is not finite; give the layers' step size, T/N for a network of final time T.")
        return value, None, None
    try:
        array = jnp.asarray(h)
    except TypeError as error:
        raise TypeError(f"h={h!r} is not a number or an array; give a scalar or one step size per layer.") from error
    if not jnp.issubdtype(array.dtype, jnp.floating) and not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"h has dtype {array.dtype}; step sizes are real numbers.")
    if array.shape not in ((), (layers,)):
        raise ValueError(f"h has shape {array.shape}; expected a scalar or one step size per layer, shape ({layers},).")
    if not isinstance(h, jax.core.Tracer) and not np.all(np.isfinite(np.asarray(h))):
        raise ValueError("h has entries that are not finite; step sizes are finite numbers.")
    # Else a float64 step size would promote what the step returns.
    array = array.astype(real_dtype(state))
    return (None, array, None) if array.ndim == 0 else (None, None, array)


def check_step(result: PyTree, state: State, what: str) -> None:
    """Raise a TypeError unless `result`, the shapes one evaluation of Phi returned, is like the state."""
    if alike(result, state):
        return
    if isinstance(result, tuple) and len(result) == 2 and alike(result[0], state):
        raise TypeError(
            f"{what} returned a pair whose first entry is like the state, {describe(state)}; it must return the next "
            "state alone. Outputs of every layer are what jm.scan collects: f(carry, x) -> (carry, y)."
        )
    raise TypeError(
        f"{what} changes the state: it was given {describe(state)} and returned {describe(result)}. Structure, "
        "shapes and dtypes must stay the same through all layers: put what changes them into the opening or the "
        "closing layer, and convert to the state's dtype inside the step."
    )


def check_pair(result: PyTree, state: State, what: str) -> None:
    """Raise a TypeError unless `result`, what f of a scan returned, is (carry, y) with a carry like the state."""
    if not isinstance(result, tuple) or len(result) != 2:
        remedy = "return (carry, None) where there is no output" if alike(result, state) else "return both"
        raise TypeError(
            f"{what} must return a pair (carry, y), as for jax.lax.scan, but returned {describe(result)}: {remedy}."
        )
    if not alike(result[0], state):
        raise TypeError(
            f"{what} changes the carry: it was given {describe(state)} and returned {describe(result[0])}. Structure, "
            "shapes and dtypes must stay the same at every step: convert to the carry's dtype inside it."
        )


@contextlib.contextmanager
def named(what: str, theta: Layers, state: State) -> Iterator[None]:
    """Where the user's function cannot be evaluated, a TypeError that says with what."""
    try:
        yield
    except Explained:
        raise
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        # JAX's messages go on for paragraphs; the first line says what does not fit. A KeyError's is the key alone.
        reason = str(error).strip().split("\n")[0]
        reason = f"KeyError: {reason}." if isinstance(error, KeyError) else reason
        raise TypeError(
            f"{what} cannot be evaluated with the parameters of one layer {describe(theta)} and the state "
            f"{describe(state)}: {reason} Check that the two fit together, and that every leaf of the layers' "
            f"parameters has the leading axis N, one entry per layer.{_if_a_list(theta)}"
        ) from error


def _if_a_list(theta: Layers) -> str:
    """What to do where layers were perhaps handed over as a list instead of stacked."""
    layers = list(theta.values()) if isinstance(theta, dict) else theta
    if not isinstance(layers, (list, tuple)) or len(layers) < 2 or not all(alike(x, layers[0]) for x in layers):
        return ""
    # A dictionary of equal arrays is one layer with several weights.
    if isinstance(theta, dict) and hasattr(layers[0], "shape"):
        return ""
    return (
        f" If that is a list of {len(layers)} layers, stack them along a leading axis: "
        "jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)."
    )


def evaluated(f: Callable[..., Any], what: str, *args: Any) -> Any:
    """The shapes f returns; where it cannot be evaluated, a TypeError that says on what.

    The first two arguments are a slot and a state.
    """
    with named(what, args[0].theta, args[1]):
        return jax.eval_shape(f, *args)


def check_type(value: State, kind: type, name: str, remedy: str) -> None:
    """Raise a TypeError unless a value is of a kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}, not a {kind.__name__}; {remedy}")


def check_backend(backend: Any, name: str = "backend") -> None:
    """Raise a TypeError unless `backend` can spread layers."""
    if not hasattr(backend, "lift"):
        raise TypeError(
            f"{name}={backend!r} is not a backend; give jm.Local(), jm.Mesh(mesh, axis='layers') or jm.MPI(comm)."
        )


def is_scalar(result: Any) -> bool:
    """Whether a shape is that of one real floating-point number."""
    dtype = getattr(result, "dtype", None)
    return getattr(result, "shape", None) == () and dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def check_scalar(result: Any, what: str) -> None:
    """Raise a TypeError unless `result`, the shape a function returned, is one real floating-point number."""
    if not is_scalar(result):
        raise TypeError(f"{what} must return one floating-point number (shape ()), got {result}.")


def check_finite(tree: Arrays, name: str) -> None:
    """Raise a ValueError naming the first leaf with values that are not finite; traced leaves are not looked at."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.core.Tracer) or not is_inexact(leaf):
            continue
        bad = int(np.sum(~np.isfinite(np.asarray(leaf))))
        if bad:
            raise ValueError(
                f"{name}{_path(path)} has {bad} of {jnp.size(leaf)} entries that are not finite (NaN or infinity); "
                "clean the data or look at the initialisation."
            )


def is_real(value: State) -> bool:
    """Whether an option is a real number (and not a truth value)."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def integer(owner: str, name: str, value: State, least: int) -> None:
    """Raise a TypeError or ValueError unless an option is an integer of at least `least`."""
    # NumPy's integers will do; True, an integer to Python, will not.
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{owner}: {name}={value!r} is not an integer; give an integer >= {least}.")
    if value < least:
        raise ValueError(f"{owner}: {name}={value} is too small; give an integer >= {least}.")


def check_solver(name: str, solver: Any) -> None:
    """Raise a TypeError unless `solver` is an object that can solve."""
    # A class, `jm.Sequential` without its parentheses, has the methods too.
    if isinstance(solver, type) or not hasattr(solver, "run") or not hasattr(solver, "hierarchy"):
        raise TypeError(f"{name}={solver!r} is not a solver; give jm.MGRIT(...), jm.Newton(...) or jm.Sequential().")


def check_batch_axis(owner: str, batch_axis: int | None, state: State) -> None:
    """Raise a ValueError unless every leaf of a state that has axes has this one."""
    if batch_axis is None:
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if leaf.ndim and not -leaf.ndim <= batch_axis < leaf.ndim:
            raise ValueError(
                f"{owner}: batch_axis={batch_axis} is out of range for the state's leaf {_path(path)} of shape "
                f"{leaf.shape}; name the samples' axis that all leaves have, or give None."
            )
