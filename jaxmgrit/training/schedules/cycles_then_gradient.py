"""One-shot training's "cycles, then gradient", as published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import repeat
from jaxmgrit.solution import CPoints
from jaxmgrit.solvers.result import worse
from jaxmgrit.training.schedules.base import Found, LossHead, Setting, mismatch
from jaxmgrit.verbs.adjoint import adjoint_network
from jaxmgrit.verbs.state import solve_network

if TYPE_CHECKING:
    from jaxmgrit._types import State, Warm
    from jaxmgrit.system.network import Network
    from jaxmgrit.system.partition import Level

PyTree = Any


@dataclass(frozen=True)
class CyclesThenGradient:
    """State cycles, loss, adjoint cycles, gradient: each warm-started from the previous iteration's.

    With many cycles, or with `Sequential()` for both solvers, this is conventional training.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> loss = lambda p, u, y: (jnp.mean((u - y) ** 2), None)
        >>> problem = jm.Problem(lambda p, x: x @ p, step, loss, h=0.1)
        >>> params = jm.Params(jnp.eye(2), 0.1 * jnp.ones((16, 2, 2)), ())
        >>> batch = (jnp.ones((3, 2)), jnp.zeros((3, 2)))
        >>> cycles, schedule = jm.MGRIT(4, cycles=1), jm.CyclesThenGradient()
        >>> trainer = jm.OneShot(problem, optax.sgd(0.1), solver=cycles, adjoint=cycles, schedule=schedule)
        >>> state, info = jax.jit(trainer.step)(trainer.init(params, batch), batch)

    Source: Guenther et al. 2020 (arXiv 1812.04352), section 3.4.
    """

    def level(self, layers: int, setting: Setting) -> Level:
        """The partition the layers are kept in."""
        return setting.solver.hierarchy(layers, setting.backend.size)[0]

    def init(self, layers: int, u0: State, setting: Setting) -> PyTree:
        """Warm values: u^0 at all C-points of the state, zero at those of the adjoint. None for a sequential solver."""
        solver, adjoint, backend = setting
        state = solver.hierarchy(layers, backend.size)
        # The adjoint's C-points count from the last layer, so its padding is in front of the first.
        reversed_ = adjoint.hierarchy(layers, backend.size, front=True)
        # A sequential solve needs no guess: nothing is kept from one iteration to the next.
        ends = repeat(u0, state[0].intervals) if not solver.is_sequential(state) else None
        lam = (
            jax.tree.map(jnp.zeros_like, repeat(u0, reversed_[0].intervals))
            if not adjoint.is_sequential(reversed_)
            else None
        )
        return ends, lam

    def warm_levels(self, layers: int, setting: Setting) -> tuple[Level, Level]:
        """The partitions the warm values belong to, one for each entry of `warm`."""
        solver, adjoint, backend = setting
        state = solver.hierarchy(layers, backend.size)[0]
        return state, adjoint.hierarchy(layers, backend.size, front=True)[0]

    def gradient(self, network: Network, u0: State, head: LossHead, warm: Warm, setting: Setting) -> Found:
        """One iteration's state solve, loss, adjoint solve and gradient."""
        solver, adjoint, backend = setting
        ends, lam_ends = warm
        sol = solve_network(network, u0, solver, _guess(u0, ends), backend)
        top = head(sol.u_final)
        # Only the ends are warm: C-point 0 of the adjoint is this iteration's lam^N. Gradients are swept in the same
        # program, at the values after the last correction.
        adj, swept = adjoint_network(
            network, sol, top.lam_final, adjoint, _guess(top.lam_final, lam_ends), backend, gradients=True
        )
        assert swept is not None
        keep_state = None if ends is None else sol.c_points.ends
        keep_lam = None if lam_ends is None else adj.c_points.ends
        result = worse(sol.result, adj.result)
        norms = _last(sol.residual_norms), _last(adj.residual_norms)
        missed = mismatch(norms, (sol.scale, adj.scale))
        slots, shared = swept.slots.theta, swept.shared.given.params
        warm = keep_state, keep_lam
        return Found(top, slots, adj.lam_initial, swept.cost, *norms, result, warm, shared, missed)


def _guess(initial: State, ends: State) -> CPoints | None:
    return None if ends is None else CPoints(initial, ends)


def _last(norms: jax.Array) -> jax.Array:
    """The last residual norm recorded; 0 where there is none (a sequential solve)."""
    if norms.size == 0:
        return jnp.zeros((), norms.dtype)
    recorded = norms != -1  # what is not finite is recorded too
    # A solve may stop early. Of the history reversed, argmax finds the first record, which is the last one made.
    last = norms[norms.size - 1 - jnp.argmax(recorded[::-1])]
    return jnp.where(jnp.any(recorded), last, jnp.zeros_like(last))
