"""Operations that compute nothing and mark a traced program: a step of a level, its pullbacks, a message.

The step that programs are traced with, `marked_step`, is the identity. Its mark goes through `vmap` (a batch of steps
is one mark that counts as many), `scan` and differentiation, where the pullbacks to state and parameters are marks of
their own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.extend.core as core
import jax.numpy as jnp
from jax.interpreters import ad, batching

from jaxmgrit._pytree import is_inexact

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Layers, State, StepSize

PyTree = Any

step_p = core.Primitive("count_step")
push_p = core.Primitive("count_push")  # of a tangent; what a pullback is the transpose of
pull_p = core.Primitive("count_pull")
message_p = core.Primitive("count_message")
index_p = core.Primitive("count_index")
split_p = core.Primitive("count_split")

MARKS = frozenset(p.name for p in (step_p, push_p, pull_p, message_p, split_p))


def marked_step(theta: Layers, u: State, h: StepSize, *constants: Any) -> PyTree:
    """A step of the finest level."""
    return _mark(theta, u, 1)


def marked_coarse_step(
    step: Any, theta: Layers, u: State, h: StepSize, m: int, *rest: Any, reverse: bool = False
) -> PyTree:
    """A step of the level whose steps replace m layers, in either direction."""
    return _mark(theta, u, m)


def _mark(theta: Layers, u: State, stride: int) -> PyTree:
    leaves, tree = jax.tree.flatten(u)
    parameters = [x for x in jax.tree.leaves(theta) if is_inexact(x)]
    # One leaf of each stands for all: steps are counted, not arrays.
    leaves[0] = step_p.bind(leaves[0], *parameters[:1], stride=stride, times=1)
    return jax.tree.unflatten(tree, leaves)


@step_p.def_abstract_eval
def _(u: State, *theta: Any, **_: Any) -> Any:
    return u


def _differentiate(primals: Arrays, tangents: Arrays, *, stride: int, times: int) -> Any:
    out = step_p.bind(*primals, stride=stride, times=times)
    # A symbolic zero is not pushed: its pullback is never done. A step without parameters has one operand.
    pushed = [
        push_p.bind(t, out, of=of, stride=stride, times=times, shapes=((x.shape, x.dtype), (out.shape, out.dtype)))
        for of, x, t in zip(("state", "parameters"), primals, tangents, strict=False)
        if type(t) is not ad.Zero
    ]
    return out, sum(pushed[1:], pushed[0])


ad.primitive_jvps[step_p] = _differentiate


# The second operand of both is the layer's value: as a layer's derivative would, it tells one layer from the next, so
# that what one tangent becomes in a batch of layers is as many marks.
@push_p.def_abstract_eval
def _(t: Arrays, value: Arrays, *, shapes: Any, **_: Any) -> Any:
    return jax.core.ShapedArray(*shapes[1])


@pull_p.def_abstract_eval
def _(ct: Any, value: Arrays, *, shapes: Any, **_: Any) -> Any:
    return jax.core.ShapedArray(*shapes[0])


def _differentiate_linear(primitive: Any, primals: Arrays, tangents: Arrays, **params: Any) -> Any:
    out, (t, _) = primitive.bind(*primals, **params), tangents
    if type(t) is ad.Zero:
        return out, ad.Zero(jax.typeof(out).to_tangent_aval())
    return out, primitive.bind(t, primals[1], **params)


for _linear in (push_p, pull_p):
    ad.primitive_jvps[_linear] = partial(_differentiate_linear, _linear)
ad.primitive_transposes[push_p] = lambda ct, t, value, **params: [
    pull_p.bind(ad.instantiate_zeros(ct), value, **params),
    None,
]


def _batch(primitive: Any, args: Arrays, axes: Any, *, times: int, **params: Any) -> Any:
    """One mark for the whole batch, which its shapes tell once more."""
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
    args = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(args, axes, strict=True)]
    if primitive is step_p and axes[0] is None:  # the parameters alone are batched, and so is what comes of them
        args[0] = jnp.broadcast_to(args[0], (size, *args[0].shape))
    if "shapes" in params:
        params["shapes"] = tuple(((size, *shape), dtype) for shape, dtype in params["shapes"])
    return primitive.bind(*args, times=size * times, **params), 0


for _primitive in (step_p, push_p, pull_p):
    batching.primitive_batchers[_primitive] = partial(_batch, _primitive)


def message(kind: str, x: jax.Array, bytes_: int, leading: int = 1) -> jax.Array:
    """Mark an array as sent, gathered (then the leading axis is so many times as long) or summed."""
    marked: jax.Array = message_p.bind(x, kind=kind, bytes=bytes_, leading=leading)
    return marked


@message_p.def_abstract_eval
def _(x: Arrays, *, leading: int, **_: Any) -> Any:
    return x if leading == 1 else x.update(shape=(leading * x.shape[0], *x.shape[1:]))


def index() -> jax.Array:
    """A device's position, which nobody knows."""
    position: jax.Array = index_p.bind()
    return position


@index_p.def_abstract_eval
def _() -> Any:
    return jax.core.ShapedArray((), jnp.dtype("int32"))


def split(x: Arrays) -> PyTree:
    """Mark where the first part of a program ends."""
    return jax.tree.map(split_p.bind, x)


split_p.def_abstract_eval(lambda x: x)
