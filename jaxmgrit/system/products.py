"""Matrix products summed over several axes, written as XLA's CPU backend does them fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.extend.core as core

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays

PyTree = Any


def flat_products(f: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The function, whose products summed over several leading axes of both operands are summed over one.

    They are the cotangents of weights that many layers and samples share. XLA transposes an operand of such a product,
    which takes longer than the product, unless both are matrices.
    """

    def flat(*args: Arrays) -> PyTree:
        closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
        outputs = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return flat


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(x: Any) -> Any:
        return x.val if isinstance(x, core.Literal) else values[x]

    for equation in jaxpr.eqns:
        name, params, operands = equation.primitive.name, equation.params, [*map(read, equation.invars)]
        if name == "jit" or (name == "remat2" and not params["prevent_cse"]):
            inner, own = params["jaxpr"], ()
            if isinstance(inner, core.ClosedJaxpr):
                inner, own = inner.jaxpr, inner.consts
            outputs = _evaluate(inner, own, operands)
        elif name == "dot_general" and _is_over_leading_axes(params):
            a, b = operands
            outputs = [_product(a, b, params)]
        else:
            bound = equation.primitive.get_bind_params(params)
            # Older versions of JAX give functions apart.
            functions, rest = bound if isinstance(bound, tuple) else ((), bound)
            outputs = equation.primitive.bind(*functions, *operands, **rest)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [*map(read, jaxpr.outvars)]


def _is_over_leading_axes(params: Any) -> bool:
    (left, right), batch = params["dimension_numbers"]
    leading = tuple(range(len(left)))
    return len(left) > 1 and tuple(left) == tuple(right) == leading and batch == ((), ())


def _product(a: jax.Array, b: jax.Array, params: Any) -> jax.Array:
    axes = len(params["dimension_numbers"][0][0])
    rows = math.prod(a.shape[:axes])
    flat = jax.lax.dot_general(
        a.reshape(rows, -1),
        b.reshape(rows, -1),
        (((0,), (0,)), ((), ())),
        params["precision"],
        params["preferred_element_type"],
    )
    return flat.reshape(*a.shape[axes:], *b.shape[axes:])
