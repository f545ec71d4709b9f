"""The adjoint by the same solver on the reversed grid, and the layers' gradients from state and adjoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmgrit._checks import check_backend, check_like, check_state, check_type
from jaxmgrit._pytree import merge, split, zero_cotangent
from jaxmgrit.backend.local import LOCAL
from jaxmgrit.solution import AdjointSolution, CPoints, Solution, check_partition, check_solution, state_data
from jaxmgrit.solvers.mgrit.solver import DEFAULT
from jaxmgrit.system.network import make_network
from jaxmgrit.verbs.adjoint import (
    adjoint_network,
    adjoint_points_program,
    gradient_program,
)

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Layers, State, StepSize
    from jaxmgrit.backend.base import Backend
    from jaxmgrit.solvers.base import Solver
    from jaxmgrit.system.network import Network

PyTree = Any


def adjoint_solve(
    step: Callable[..., PyTree],
    theta: Layers,
    sol: Solution,
    lam_final: State,
    *,
    h: StepSize,
    solver: Solver = DEFAULT,
    guess: CPoints | None = None,
    running_cost: Callable[..., Any] | None = None,
    backend: Backend = LOCAL,
) -> AdjointSolution:
    """Propagate lam^N backwards: lam^n = (d step / d u)^T lam^{n+1} + d running_cost / d u^n.

    The same solver on the reversed grid: C-points are counted from the last layer. The steps are linearised at the fine
    states of `sol`, recomputed from its C-points within each sweep.

    Args:
        step: as in `solve`.
        theta: as in `solve`.
        sol: the state, from `solve`; one solved by `Sequential()` or with another coarsening factor will do too, but
            the states of all N layers are then kept while the adjoint is solved, unless its segments are those of
            `solver`.
        lam_final: lam^N = d loss / d u^N, like the state.
        h: as in `solve`.
        solver: `MGRIT(...)` (the default), `Newton(...)` (one iteration is exact) or `Sequential()`.
        guess: C-points of an earlier adjoint solve with the same partition; None: lam^N everywhere.
        running_cost: (theta, u, h) -> scalar, or None.
        backend: the one `sol` was computed with.

    Returns:
        An `AdjointSolution`.

    Raises:
        TypeError, ValueError: arguments that do not fit together; nothing has been compiled by then.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> theta, u0 = 0.1 * jnp.ones((64, 4, 4)), jnp.ones((2, 4))
        >>> sol = jm.solve(step, theta, u0, h=1 / 64, solver=jm.MGRIT(4, cycles=3))
        >>> adj = jm.adjoint_solve(step, theta, sol, sol.u_final, h=1 / 64, solver=jm.Sequential())
        >>> adj.lam_initial.shape
        (2, 4)

    Source: Guenther et al. 2020 (arXiv 1812.04352), section 3.3.
    """
    check_solution(sol)
    check_backend(backend)
    network = make_network(
        step, theta, sol.c_points.initial, h, solver, running_cost=running_cost, parts=backend.data_size
    )
    check_partition(sol.level, network.layers, backend, "sol")
    lam_final = check_state(lam_final, "lam_final")
    check_like(lam_final, sol.u_final, "lam_final", "It is the loss's derivative with respect to the final state.")
    # Only now: `sol.u_final`, which it was compared with, is of the whole batch.
    lam_final = backend.split_batch(lam_final)
    solver = solver.fitted(network.layers, lam_final, backend)
    adj, _ = adjoint_network(network, sol, lam_final, solver, guess, backend)
    return replace(adj, lam_initial=backend.join_batch(adj.lam_initial))


def layer_gradients(
    step: Callable[..., PyTree],
    theta: Layers,
    sol: Solution,
    adj: AdjointSolution,
    *,
    h: StepSize,
    running_cost: Callable[..., Any] | None = None,
    backend: Backend = LOCAL,
) -> PyTree:
    """Gradient with respect to the layers' parameters: (d step / d theta)^T lam^{n+1} + d running_cost / d theta^n.

    One sweep in which all layers are independent, at the values after the last correction.

    Args:
        step: as in `solve`.
        theta: as in `solve`.
        sol: the state.
        adj: the adjoint, from `adjoint_solve` with this `sol`.
        h: as in `solve`.
        running_cost: as in `adjoint_solve`.
        backend: the one `sol` and `adj` were computed with.

    Returns:
        The same pytree as theta. Integer and key leaves have zeros of dtype float0, as everywhere in JAX.

    Raises:
        TypeError, ValueError: arguments that do not fit together.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> theta, u0 = 0.1 * jnp.ones((64, 4, 4)), jnp.ones((2, 4))
        >>> sol = jm.solve(step, theta, u0, h=1 / 64, solver=jm.MGRIT(4, cycles=3))
        >>> adj = jm.adjoint_solve(step, theta, sol, sol.u_final, h=1 / 64, solver=jm.Sequential())
        >>> jm.layer_gradients(step, theta, sol, adj, h=1 / 64).shape
        (64, 4, 4)
    """
    network = _solved_network(step, theta, sol, adj, h, running_cost, backend)
    program = gradient_program(network.equation, sol.level, adj.level, backend)
    swept = program(state_data(network, sol, backend), adj.c_points.initial, adj.c_points.ends)
    return like_theta(swept.slots.theta, theta, network.layers, backend)


def like_theta(d_theta: Arrays, theta: Layers, layers: int, backend: Backend) -> PyTree:
    """Gradients of the differentiable leaves by slot to gradients of all leaves by layer."""
    whole = jax.tree.map(lambda x: x[:layers], backend.gather(d_theta))
    return merge(whole, jax.tree.map(zero_cotangent, split(theta)[1]))


def adjoint_trajectory(
    step: Callable[..., PyTree],
    theta: Layers,
    sol: Solution,
    adj: AdjointSolution,
    *,
    h: StepSize,
    running_cost: Callable[..., Any] | None = None,
    backend: Backend = LOCAL,
) -> PyTree:
    """All adjoints lam^0 .. lam^N: the C-points of `adj`, and its F-points by F-relaxation.

    Arguments as in `layer_gradients`.

    Returns:
        The state's pytree with leading axis N + 1 on every leaf.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> theta, u0 = 0.1 * jnp.ones((64, 4, 4)), jnp.ones((2, 4))
        >>> sol = jm.solve(step, theta, u0, h=1 / 64, solver=jm.MGRIT(4, cycles=3))
        >>> adj = jm.adjoint_solve(step, theta, sol, sol.u_final, h=1 / 64, solver=jm.Sequential())
        >>> jm.adjoint_trajectory(step, theta, sol, adj, h=1 / 64).shape
        (65, 2, 4)
    """
    network = _solved_network(step, theta, sol, adj, h, running_cost, backend)
    program = adjoint_points_program(network.equation, sol.level, adj.level, backend)
    before = program(state_data(network, sol, backend), adj.c_points.initial, adj.c_points.ends)
    # `before` has lam^0 .. lam^{N-1}, then padding; lam^N is the adjoint's C-point 0.
    adjoints = jax.tree.map(
        lambda rest, last: jnp.concatenate([rest[: network.layers], last[None]]),
        backend.gather(before),
        adj.c_points.initial,
    )
    return backend.join_batch(adjoints, axis=1)


def _solved_network(
    step: Callable[..., PyTree],
    theta: Layers,
    sol: Solution,
    adj: AdjointSolution,
    h: StepSize,
    running_cost: Callable[..., Any] | None,
    backend: Backend,
) -> Network:
    """The checked network that a state and an adjoint belong to; arguments as in `layer_gradients`."""
    check_solution(sol)
    check_type(adj, AdjointSolution, "adj", "give what jm.adjoint_solve returned.")
    check_backend(backend)
    network = make_network(step, theta, sol.c_points.initial, h, running_cost=running_cost, parts=backend.data_size)
    check_partition(sol.level, network.layers, backend, "sol")
    check_partition(adj.level, network.layers, backend, "adj")
    return network
