"""The user's functions as programs of JAX, traced once for each kind of arguments and evaluated wherever needed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.extend.core as core

from jaxmgrit._pytree import varying_axes

PyTree = Any


class _Program(NamedTuple):
    evaluate: Callable[..., list[Any]]
    structure: Any
    consts: list[Any]
    positions: list[int | None]


class Programs:
    """What functions of (theta, u, h) do, and the traced values they close over.

    Until it is closed, functions are traced as they are met; afterwards what they closed over is handed to them, so
    that it can be differentiated and batched. A step size that is a Python number stays one: a function may branch on
    it, and is traced for each value.

    Attributes:
        constants: the traced values that any of the functions closes over.
    """

    def __init__(self) -> None:
        self.constants: list[Any] = []
        self._known: dict[Hashable, _Program] = {}
        self._closed = False

    def close(self) -> tuple[Any, ...]:
        """End the tracing: from now on `constants` are given."""
        self._closed = True
        return tuple(self.constants)

    def run(self, name: Hashable, f: Callable[..., PyTree], args: PyTree, constants: tuple[Any, ...]) -> PyTree:
        """`f(*args, ())`, where f has that name; once closed with `constants` in the place of what it closed over.

        What has not been traced by then is called as it is: `f(*args, constants)`.
        """
        leaves, tree = jax.tree.flatten(args)
        key = name, tree, tuple(map(_kind, leaves))
        program = self._known.get(key)
        if program is None and self._closed:
            return f(*args, constants)
        if program is None:
            program = self._known[key] = self._trace(f, leaves, tree)
        given = constants if self._closed else self.constants
        # What was traced when the program was made may be differentiated or batched by now; arrays are what they were.
        consts = [x if i is None else given[i] for x, i in zip(program.consts, program.positions, strict=True)]
        return jax.tree.unflatten(program.structure, program.evaluate(consts, [x for x in leaves if not _is_number(x)]))

    def _trace(self, f: Callable[..., PyTree], leaves: list[Any], tree: Any) -> _Program:
        def of_arrays(arrays: list[Any]) -> PyTree:
            rest = iter(arrays)
            return f(*jax.tree.unflatten(tree, [x if _is_number(x) else next(rest) for x in leaves]), ())

        closed, shapes = jax.make_jaxpr(of_arrays, return_shape=True)([x for x in leaves if not _is_number(x)])
        positions = [self._position(x) if isinstance(x, jax.core.Tracer) else None for x in closed.consts]

        def evaluate(consts: list[Any], arrays: list[Any]) -> list[Any]:
            outputs: list[Any] = core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, consts))(*arrays)
            return outputs

        # Under `jit` an evaluation inside another trace is one call, found in JAX's cache, instead of the body again.
        return _Program(jax.jit(evaluate), jax.tree.structure(shapes), closed.consts, positions)

    def _position(self, constant: Any) -> int:
        for i, known in enumerate(self.constants):
            # By identity: comparing traced values would be an operation of the program.
            if known is constant:
                return i
        self.constants.append(constant)
        return len(self.constants) - 1


def _is_number(x: Any) -> bool:
    return isinstance(x, (bool, int, float, complex))


def _kind(x: Any) -> Hashable:
    """What a trace depends on: the value of a Python number, else shape and type."""
    if _is_number(x):
        # With the type: 1, 1.0 and True are equal as keys, but make arrays of different dtypes.
        return type(x), x
    aval = jax.typeof(x)
    return aval.shape, aval.dtype, aval.weak_type, varying_axes(x)
