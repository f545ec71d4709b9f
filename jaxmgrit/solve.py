"""`solve`: the state through all layers, by cycles over the layer index or one layer after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmgrit._checks import check_backend, check_state
from jaxmgrit.backend.local import LOCAL
from jaxmgrit.solution import CPoints, Solution, check_partition, check_solution, state_data
from jaxmgrit.solvers.mgrit.solver import DEFAULT
from jaxmgrit.system.network import make_network
from jaxmgrit.verbs.state import points_program, solve_network

if TYPE_CHECKING:
    from jaxmgrit._types import Layers, State, StepSize
    from jaxmgrit.backend.base import Backend
    from jaxmgrit.solvers.base import Solver

PyTree = Any


def solve(
    step: Callable[..., PyTree],
    theta: Layers,
    u0: State,
    *,
    h: StepSize,
    solver: Solver = DEFAULT,
    guess: CPoints | None = None,
    backend: Backend = LOCAL,
) -> Solution:
    """Propagate u^0 through N layers: u^{n+1} = step(theta^n, u^n, h).

    Choose this for the solution object: residual history, C-points to start the next solve from, a result code. For
    a differentiable drop-in of `lax.scan` see `propagate`.

    Args:
        step: Phi(theta, u, h) -> u_next, pure; theta is one layer's parameters.
        theta: parameters, every leaf with leading axis N.
        u0: state, a pytree of floating-point arrays.
        h: step size, a scalar or one per layer, shape (N,).
        solver: `MGRIT(...)` (the default), `Newton(...)` or `Sequential()`.
        guess: C-points of an earlier solve with the same partition of the layers; None: u^0 everywhere.
        backend: `Local()` (the default), `Mesh(...)`: where the layers live.

    Returns:
        A `Solution`. With a fixed number of cycles it can be differentiated like any JAX computation.

    Raises:
        TypeError, ValueError: arguments that do not fit together; nothing has been compiled by then.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> theta, u0 = 0.1 * jnp.ones((64, 4, 4)), jnp.ones((2, 4))
        >>> sol = jm.solve(step, theta, u0, h=1 / 64, solver=jm.MGRIT(4, cycles=3))
        >>> exact = jax.lax.scan(lambda u, t: (step(t, u, 1 / 64), None), u0, theta)[0]
        >>> bool(jnp.allclose(sol.u_final, exact, rtol=1e-3))
        True

    Source: Guenther et al. 2020 (arXiv 1812.04352), sections 3.1-3.2.
    """
    check_backend(backend)
    u0 = check_state(u0)
    u0 = backend.split_batch(u0)
    network = make_network(step, theta, u0, h, solver)
    sol = solve_network(network, u0, solver.fitted(network.layers, u0, backend), guess, backend)
    return replace(sol, u_final=backend.join_batch(sol.u_final))


def trajectory(
    step: Callable[..., PyTree],
    theta: Layers,
    sol: Solution,
    *,
    h: StepSize,
    backend: Backend = LOCAL,
) -> PyTree:
    """All states u^0 .. u^N of a solution: its C-points, and its F-points by F-relaxation.

    Args:
        step: as in `solve`.
        theta: as in `solve`.
        sol: a solution of `solve`.
        h: as in `solve`.
        backend: the one the solution was made with.

    Returns:
        The state's pytree with leading axis N + 1 on every leaf.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> theta, u0 = 0.1 * jnp.ones((64, 4, 4)), jnp.ones((2, 4))
        >>> sol = jm.solve(step, theta, u0, h=1 / 64, solver=jm.MGRIT(4, cycles=3))
        >>> jm.trajectory(step, theta, sol, h=1 / 64).shape
        (65, 2, 4)
    """
    check_solution(sol)
    network = make_network(step, theta, sol.c_points.initial, h)
    check_partition(sol.level, network.layers, backend, "sol")

    program = points_program(network.equation, sol.level, backend)
    after = backend.gather(program(*state_data(network, sol, backend)))
    # `after` is by slot: what follows the last layer is padding.
    states = jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest[: network.layers]]), sol.c_points.initial, after
    )
    return backend.join_batch(states, axis=1)
