"""Errors that name this library where JAX's own, of a rule or a loop inside it, would not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.extend.core as core
from jax.interpreters import ad, batching, mlir

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays

PyTree = Any

# The identity, whose tangent goes through `_tangent_p`: transposed in reverse mode, evaluated in forward mode alone.
_identity_p = core.Primitive("reverse_mode_only")
_tangent_p = core.Primitive("reverse_mode_only_tangent")


def reverse_mode_only(x: Arrays, name: str) -> PyTree:
    """The arrays themselves, which forward-mode differentiation refuses with a TypeError that names a function."""
    return jax.tree.map(lambda leaf: _identity_p.bind(leaf, name=name), x)


def _refuse(*_: Any, name: str) -> Any:
    raise TypeError(
        f"{name}: forward-mode differentiation (jvp, jacfwd, hessian) does not go through a solver's adjoint. Leave "
        "out solver= and adjoint= on one device: the program is a plain scan then, which has every derivative."
    )


def _jvp(primals: Arrays, tangents: Arrays, *, name: str) -> Any:
    (x,), (dx,) = primals, tangents
    # A symbolic zero belongs to what is not differentiated: nothing to refuse.
    return _identity_p.bind(x, name=name), dx if type(dx) is ad.Zero else _tangent_p.bind(dx, name=name)


_identity_p.def_impl(lambda x, name: x)
_identity_p.def_abstract_eval(lambda x, name: x)
mlir.register_lowering(_identity_p, lambda context, x, name: [x])
ad.primitive_jvps[_identity_p] = _jvp
batching.primitive_batchers[_identity_p] = lambda args, axes, name: (_identity_p.bind(*args, name=name), axes[0])

# Reverse mode meets only the transpose: it transposes the tangent's program before anything of it is evaluated.
_tangent_p.def_impl(_refuse)
_tangent_p.def_abstract_eval(lambda x, name: x)
mlir.register_lowering(_tangent_p, lambda context, x, name: _refuse(name=name))
ad.deflinear2(_tangent_p, lambda cotangent, x, name: [cotangent])
batching.primitive_batchers[_tangent_p] = lambda args, axes, name: _refuse(name=name)


def differentiable_once(f: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function, whose derivative a TypeError refuses that names a function of this library."""
    once = jax.custom_vjp(f)

    def forward(*args: Any) -> Any:
        return f(*args), None

    def backward(_: Any, cotangents: Arrays) -> Any:
        raise TypeError(
            f"{name}: a solve that stops by a tolerance can be differentiated once, not twice. Name solvers with a "
            "fixed number of cycles (jm.MGRIT(cycles=k), jm.Sequential()), or leave out solver= and adjoint= on one "
            "device."
        )

    once.defvjp(forward, backward)
    return once
