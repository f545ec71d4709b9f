"""`propagate`: the differentiable drop-in for `lax.scan` over residual layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxmgrit._checks import check_backend, check_carry, check_layers
from jaxmgrit._pytree import all_finite, split
from jaxmgrit.backend.local import LOCAL
from jaxmgrit.solvers.mgrit.solver import CONVERGED
from jaxmgrit.solvers.result import result_code
from jaxmgrit.verbs.differentiable import chosen, is_plain, plainly, solved

if TYPE_CHECKING:
    from jaxmgrit._types import Layers, State, StepSize
    from jaxmgrit.backend.base import Backend
    from jaxmgrit.solvers.base import Solver

PyTree = Any


def propagate(
    step: Callable[..., PyTree],
    theta: Layers,
    u0: State,
    *,
    h: StepSize,
    solver: Solver | None = None,
    adjoint: Solver | None = None,
    backend: Backend = LOCAL,
    with_result: bool = False,
) -> Any:
    """u^N from u^0 through N layers, differentiable: `lax.scan(lambda u, t: (step(t, u, h), None), u0, theta)[0]`.

    Without a solver, on one device, it is that scan: a plain program of JAX without a rule of its own, whose gradient
    keeps the states or computes layers or segments again, whichever is faster for their size. `jit`, `grad`, `vmap`,
    `jvp`, `jax.hessian`, `grad` of `grad`, `jax.export` and `shard_map` around it, and carries of integers and keys,
    are those of `lax.scan`: swapping a scan for it changes nothing.

    Without a solver, on several devices, state and adjoint are iterated to the dtype's rounding, by at most 50 cycles,
    and propagated one layer after another where the cycles do not get there. That relay has the devices work by turns:
    it takes as long as one device takes for all layers.

    Whoever names a solver gets that solver, on one device too; what is not named then is exact (one layer after
    another on one device, to rounding on several). The cotangent is propagated by `adjoint`, linearised at the state
    the solver ended with; it is the derivative of the returned value at convergence only. With few cycles it is the
    inexact gradient of one-shot training. Forward mode is for the plain program; second derivatives by reverse over
    reverse work with solvers without a tolerance.

    Args:
        step: Phi(theta, u, h) -> u_next, pure; may close over traced values, which are differentiated too.
        theta: parameters, every leaf with leading axis N; integer and key leaves are carried, not differentiated.
        u0: state, a pytree of arrays: floating point where a solver is named or the layers are spread over devices.
        h: step size, a scalar or one per layer, shape (N,); differentiated if it is traced.
        solver: for the state, `MGRIT(...)`, `Newton(...)` or `Sequential()`.
        adjoint: for the adjoint, likewise.
        backend: where the layers live, `Local()` by default.
        with_result: also return the state solve's result code, see `Result` and `check`.

    Returns:
        u^N, like u0; or (u^N, code).

    Raises:
        TypeError: forward-mode differentiation where a solver is named, and arguments of the wrong kind.
        ValueError: arguments that do not fit together.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> theta, u0 = 0.1 * jnp.ones((64, 4, 4)), jnp.ones((2, 4))
        >>> u = jm.propagate(step, theta, u0, h=1 / 64)
        >>> gradient = jax.grad(lambda t: jm.propagate(step, t, u0, h=1 / 64).sum())(theta)
        >>> inexact = jm.propagate(step, theta, u0, h=1 / 64, solver=jm.MGRIT(4, cycles=2))
    """
    if not callable(step):
        raise TypeError(f"propagate: step={step!r} is not a function; give step(theta, u, h) -> u_next.")
    check_backend(backend)
    check_carry(u0, "u0")
    layers = check_layers(theta)
    if is_plain(solver, adjoint, backend, layers):
        u_final, _ = plainly(step, theta, u0, h, layers, False)
        # The plain run is exact: all that may go wrong is a value that is not finite.
        return (u_final, result_code(all_finite(split(u_final)[0]), True, False)) if with_result else u_final

    solver, adjoint = chosen(solver, adjoint, backend, CONVERGED)
    u_final, _, result = solved(step, theta, u0, h, solver, adjoint, backend, False, "propagate")
    return (u_final, result) if with_result else u_final
