"""Gradients of the zoo's networks, by a scan and by cycles, and how far they are from each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmgrit as jm
from experiments.networks.zoo import Specimen
from experiments.timing.sequential import propagations

PyTree = Any


def gradient_of(propagate: Callable[[PyTree, PyTree], PyTree]) -> Callable[[PyTree, PyTree], PyTree]:
    """Value and gradients (theta, u0) of the mean square of the final state."""

    def loss(theta: PyTree, u0: PyTree) -> Any:
        return sum(jnp.mean(x**2) for x in jax.tree.leaves(propagate(theta, u0)))

    return jax.value_and_grad(loss, argnums=(0, 1))


def plain(net: Specimen) -> Callable[[PyTree, PyTree], PyTree]:
    """(theta, u0) -> u^N by the user's own scan."""
    return propagations(net.step, net.h, net.layers)["plain"]


def by_cycles(net: Specimen, cycles: int) -> tuple[PyTree, Any, Any]:
    """Gradients (theta, u0) by so many cycles of `MGRIT(4)` each, and the result codes of state and adjoint."""
    solver = jm.MGRIT(4, cycles=cycles)

    @jax.jit
    def run(theta: PyTree, u0: PyTree) -> PyTree:
        sol = jm.solve(net.step, theta, u0, h=net.h, solver=solver)
        lam = jax.tree.map(lambda x: 2 * x / x.size, sol.u_final)
        adj = jm.adjoint_solve(net.step, theta, sol, lam, h=net.h, solver=solver)
        gradient = jm.layer_gradients(net.step, theta, sol, adj, h=net.h)
        return (gradient, adj.lam_initial), sol.result, adj.result

    gradient, state, adjoint = run(net.theta, net.u0)
    return gradient, jm.Result(int(state)), jm.Result(int(adjoint))


def distance(a: PyTree, b: PyTree) -> float:
    """Relative Euclidean distance of two pytrees, in float64 on the host."""
    x, y = (np.concatenate([np.ravel(np.asarray(z, np.float64)) for z in jax.tree.leaves(tree)]) for tree in (a, b))
    off, size = np.linalg.norm(x - y), np.linalg.norm(y)
    return float(off / size) if size else float(off)
