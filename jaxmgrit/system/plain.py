"""The plain program: `lax.scan` over all layers, what its pullback needs kept or computed again, by its size.

No custom rule is involved, so that everything JAX does with a scan it does with this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.extend.core as core
import jax.numpy as jnp

from jaxmgrit._checks import alike
from jaxmgrit._pytree import merge, size_in_bytes, split

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Layers, State

PyTree = Any
Layer = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]


def plain_scan(
    f: Layer, init: State, xs: Layers, length: int, *, reverse: bool = False, unroll: int | bool = 1
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan(f, init, xs, length, reverse, unroll)`, rematerialised where that is faster on this platform.

    Args:
        f: (carry, x) -> (carry, y), of which one call is traced.
        init: carry, a pytree of arrays of any dtype.
        xs: leaves with leading axis `length`, or None.
        length: number of steps.
        reverse: whether the run goes from the last entry of xs to the first.
        unroll: as in `lax.scan`.
    """
    if length == 0 or jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        return jax.lax.scan(f, init, xs, length, reverse, unroll)
    x = jax.eval_shape(lambda xs: jax.tree.map(lambda leaf: leaf[0], xs), xs)
    f, init = _traced(f, init, x)
    if jax.default_backend() == "cpu" and _kept(f, init, x) * length > _KEPT_BYTES:
        # Inside a loop XLA cannot merge the second evaluation with the first.
        f = jax.checkpoint(f, prevent_cse=False)
    return jax.lax.scan(f, init, xs, length, reverse, unroll)


def _traced(f: Layer, init: State, x: Arrays) -> tuple[Layer, PyTree]:
    """The function as a program of JAX, traced once, and the carry with the dtypes it settles on."""
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(init, x)
    settled = jax.tree.map(_settled, init, shapes[0])
    if not alike(init, settled):
        closed, shapes = jax.make_jaxpr(f, return_shape=True)(settled, x)
    structure = jax.tree.structure(shapes)

    def layer(carry: State, x: Arrays) -> tuple[PyTree, PyTree]:
        outputs = core.jaxpr_as_fun(closed)(*jax.tree.leaves((carry, x)))
        result: tuple[PyTree, PyTree] = jax.tree.unflatten(structure, outputs)
        return result

    return layer, settled


def _settled(x: Arrays, after: State) -> Any:
    """A number whose dtype was left open gets the one it has after a step, as in `lax.scan`."""
    is_weak = isinstance(x, (bool, int, float, complex)) or getattr(x, "weak_type", False)
    return jnp.asarray(x, jnp.result_type(x, after.dtype)) if is_weak else x


# Where reverse mode keeps more bytes of all layers than this, writing and reading them takes longer than computing the
# layers again: a few megabytes are what the caches of one CPU core hold.
_KEPT_BYTES = 3 << 20


def _kept(f: Layer, init: State, x: Arrays) -> int:
    """Bytes that reverse mode keeps of one layer, what it is given not counted."""
    differentiable, others = split((init, x))

    def pullback(d: State) -> Any:
        return jax.vjp(lambda d: split(f(*merge(d, others)))[0], d)[1]

    try:
        program = jax.make_jaxpr(pullback)(differentiable).jaxpr
    except Exception:  # a layer without a derivative: whoever asks for it will be told by JAX
        return 0
    given = {*program.invars, *program.constvars}
    own = {v for v in program.outvars if not isinstance(v, core.Literal)} - given
    return size_in_bytes([v.aval for v in own])
