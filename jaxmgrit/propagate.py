"""`propagate`: the differentiable drop-in for `lax.scan` over residual layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.extend.core as core
import jax.numpy as jnp

from jaxmgrit._checks import check_backend, check_state
from jaxmgrit._pytree import merge, split
from jaxmgrit.adjoint import adjoint_network
from jaxmgrit.backend.base import Backend
from jaxmgrit.backend.local import LOCAL
from jaxmgrit.solution import Solution
from jaxmgrit.solve import solve_network
from jaxmgrit.solvers.base import Solver
from jaxmgrit.solvers.mgrit.solver import MGRIT
from jaxmgrit.solvers.sequential import match_segments
from jaxmgrit.system.network import Network, make_network
from jaxmgrit.system.step import Equation, Slot

PyTree = Any

# To the dtype's rounding, whatever the network.
CONVERGED = MGRIT(cycles=50, rtol=0.0, sequential_fallback=True)


def propagate(
    step: Callable[..., PyTree],
    theta: PyTree,
    u0: PyTree,
    *,
    h: Any,
    solver: Solver | None = None,
    adjoint: Solver | None = None,
    backend: Backend = LOCAL,
    with_result: bool = False,
) -> Any:
    """u^N from u^0 through N layers, differentiable: `lax.scan(lambda u, t: (step(t, u, h), None), u0, theta)[0]`.

    Works under `jit`, `grad`, `vmap` and inside a training step. The default solver and adjoint iterate to the dtype's
    rounding, and propagate sequentially where the cycles do not get there: swapping a scan for it changes nothing but
    the speed.

    The cotangent is propagated by `adjoint`, linearised at the state the solver ended with; it is the derivative of the
    returned value at convergence only. With few cycles it is the inexact gradient of one-shot training.

    Args:
        step: Phi(theta, u, h) -> u_next, pure; may close over traced values, which are differentiated too.
        theta: parameters, every leaf with leading axis N; integer and key leaves are carried, not differentiated.
        u0: state, a pytree of floating-point arrays.
        h: step size, a scalar or one per layer, shape (N,); differentiated if it is traced.
        solver: for the state; None: to rounding, at most 50 cycles.
        adjoint: for the adjoint; None: likewise.
        backend: where the layers live, `Local()` by default.
        with_result: also return the state solve's result code, see `Result` and `check`.

    Returns:
        u^N, like u0; or (u^N, code).

    Raises:
        TypeError: forward-mode differentiation (`jvp`, `jacfwd`), and arguments of the wrong kind.
        ValueError: arguments that do not fit together.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> theta, u0 = 0.1 * jnp.ones((64, 4, 4)), jnp.ones((2, 4))
        >>> u = jm.propagate(step, theta, u0, h=1 / 64)
        >>> gradient = jax.grad(lambda t: jm.propagate(step, t, u0, h=1 / 64).sum())(theta)
    """
    solver, adjoint = match_segments(CONVERGED if solver is None else solver, CONVERGED if adjoint is None else adjoint)
    check_backend(backend)
    u0 = check_state(u0)
    network = make_network(step, theta, u0, h, solver, adjoint)
    network = _hoist(network, u0)
    differentiable, others = split((network.slots, network.shared))
    problem = _Static(network.equation, network.layers, solver, adjoint, backend)
    u_final, result = _propagate(problem, differentiable, others, u0)
    return (u_final, result) if with_result else u_final


@dataclass(frozen=True, eq=False)  # compared by identity: a step may be an object that cannot be hashed
class _Static:
    """What of a `propagate` is not an array."""

    equation: Equation
    layers: int
    solver: Solver
    adjoint: Solver
    backend: Backend

    def network(self, differentiable: PyTree, others: PyTree) -> Network:
        return Network(self.equation, self.layers, *merge(differentiable, others))


def _hoist(network: Network, u0: PyTree) -> Network:
    """Make traced values that the step closes over an argument, so that they can be differentiated and batched."""
    step, h = network.equation.step, network.equation.h
    slot = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), network.slots)
    size = h if h is not None else network.shared.h if slot.h is None else slot.h
    if h is not None:
        closed = jax.make_jaxpr(lambda t, u: step(t, u, h))(slot.theta, u0)
    else:
        closed = jax.make_jaxpr(step)(slot.theta, u0, size)
    if not any(isinstance(constant, jax.core.Tracer) for constant in closed.consts):
        return network
    # Like `jax.closure_convert`, which however leaves integers and keys behind.
    closed, shapes = jax.make_jaxpr(step, return_shape=True)(slot.theta, u0, size)
    structure = jax.tree.structure(shapes)

    def converted(theta: PyTree, u: PyTree, h: Any, *constants: Any) -> PyTree:
        program = core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, constants))
        size_ = jnp.asarray(h, closed.in_avals[-1].dtype)
        return jax.tree.unflatten(structure, program(*jax.tree.leaves((theta, u)), size_))

    return replace(
        network,
        equation=replace(network.equation, step=converted),
        shared=network.shared._replace(constants=tuple(closed.consts)),
    )


def _solve(problem: _Static, differentiable: PyTree, others: PyTree, u0: PyTree) -> Solution:
    network = problem.network(differentiable, others)
    return solve_network(network, problem.backend.split_batch(u0), problem.solver, None, problem.backend)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _propagate(problem: _Static, differentiable: PyTree, others: PyTree, u0: PyTree) -> Any:
    return _value(problem, _solve(problem, differentiable, others, u0))


def _value(problem: _Static, sol: Solution) -> Any:
    return problem.backend.join_batch(sol.u_final), sol.result


def _forward(problem: _Static, differentiable: PyTree, others: PyTree, u0: PyTree) -> Any:
    sol = _solve(problem, differentiable, others, u0)
    return _value(problem, sol), (differentiable, others, sol)


def _backward(problem: _Static, kept: Any, cotangents: Any) -> Any:
    differentiable, others, sol = kept
    network, backend = problem.network(differentiable, others), problem.backend
    adj, found = adjoint_network(
        network,
        sol,
        backend.split_batch(cotangents[0]),
        problem.adjoint,
        None,
        backend,
        gradients=True,
        step_sizes=True,
    )
    assert found is not None
    d_slots: Slot = jax.tree.map(lambda x: x[: problem.layers], backend.gather(found.slots))
    return (d_slots, found.shared), None, backend.join_batch(adj.lam_initial)


_propagate.defvjp(_forward, _backward)
