"""The running cost of a solved state, without derivatives: what a line search needs to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmgrit._programs import cached
from jaxmgrit._pytree import real_dtype, where
from jaxmgrit.backend.base import REPLICATED, Backend
from jaxmgrit.solution import STATE_SPECS, Solution, state_data
from jaxmgrit.solvers.mgrit.grids import finest_grid

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Layers, Mask, State
    from jaxmgrit.system.network import Network
    from jaxmgrit.system.partition import Level
    from jaxmgrit.system.step import Equation

PyTree = Any


def total_running_cost(network: Network, sol: Solution, backend: Backend) -> jax.Array:
    """sum_n running_cost(theta^n, u^n, h), the states recomputed from the C-points; 0 without a running cost."""
    if network.equation.running_cost is None:
        return jnp.zeros((), real_dtype(sol.u_final))
    return _cost_program(network.equation, sol.level, backend)(*state_data(network, sol, backend))


@cached
def _cost_program(equation: Equation, level: Level, backend: Backend) -> Callable[..., jax.Array]:
    def body(slots: Layers, u0: State, shared: PyTree, ends: State) -> jax.Array:
        grid = finest_grid(equation, slots, shared, level, u0, backend)

        def interval(start: State, block: Layers, mask: Mask) -> jax.Array:
            def one(u: State, inputs: Arrays) -> tuple[PyTree, jax.Array]:
                slot, inside = inputs
                # At u^n, before the layer's own step. Padding computes like any layer; its cost is left out.
                cost = equation.cost(slot, u, shared)
                return where(inside, equation.advance(slot, u, shared), u), where(inside, cost, jnp.zeros_like(cost))

            return jnp.sum(jax.lax.scan(one, start, (block, mask))[1])

        costs = grid.sweep(interval, ends, u0, grid.blocks, grid.mask)
        # Over the layers, then over the parts of the batch, each of which counts 1/parts: see `Equation.parts`.
        return backend.data_sum(backend.all_sum(jnp.sum(costs)))

    return backend.lift(body, STATE_SPECS, REPLICATED)
