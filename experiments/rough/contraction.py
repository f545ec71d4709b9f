"""By how much a cycle reduces residuals on layers as they are, and what theory says of Picard sweeps on them."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxmgrit as jm
from jaxmgrit.solvers.mgrit.coarse import Picard

PyTree = Any
Step = Callable[[PyTree, PyTree, Any], PyTree]


class Law(NamedTuple):
    """What theory says of the contraction by a cycle with p Picard sweeps and K intervals.

    Attributes:
        independent: 0.45 c2^(p+1) / sqrt((p+1)! K^p) of layers that have nothing in common, where c2^2 is the sum of
            the squared norms of the derivatives of the layers' increments.
        coherent: c1^(p+1) / ((p+1)! K^p) of layers that all do the same, where c1 is the sum of these norms.
    """

    independent: jax.Array
    coherent: jax.Array


def law(step: Step, theta: PyTree, states: PyTree, h: Any, sweeps: int, intervals: int) -> Law:
    """The law of `docs/concepts/rough.md`, with the norms of derivatives as they are on the average over directions.

    Args:
        step: Phi(theta, u, h) -> u_next.
        theta: Parameters, leading axis N.
        states: u^0 .. u^N, leading axis N + 1.
        h: Step size.
        sweeps: p.
        intervals: K.
    """
    before = jax.tree.map(lambda x: x[:-1], states)
    leaves, structure = jax.tree.flatten(before)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    # One random direction a state: with its samples and features it has enough entries for an average.
    directions = [jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, leaves, strict=True)]
    tangents = jax.tree.unflatten(structure, directions)

    def squared(tree: PyTree) -> jax.Array:
        return jnp.asarray(sum(jnp.sum(x * x) for x in jax.tree.leaves(tree)))

    def strength(inputs: PyTree) -> jax.Array:
        p, u, v = inputs
        moved = jax.jvp(lambda u: jax.tree.map(jnp.subtract, step(p, u, h), u), (u,), (v,))[1]
        return squared(moved) / squared(v)

    strengths = jax.lax.map(strength, (theta, before, tangents))
    power, ways = sweeps + 1, math.factorial(sweeps + 1)
    c1, c2 = jnp.sum(jnp.sqrt(strengths)), jnp.sqrt(jnp.sum(strengths))
    return Law(0.45 * c2**power / math.sqrt(ways * intervals**sweeps), c1**power / (ways * intervals**sweeps))


def residuals(
    step: Step, theta: PyTree, u0: PyTree, loss: Callable[[PyTree], jax.Array], h: Any, solver: jm.MGRIT
) -> tuple[jax.Array, jax.Array, jm.Solution]:
    """Residual norms of state and adjoint, cycle by cycle from a cold start, and the exact state.

    The adjoint is linearised at the exact state, so that errors of the state do not blur its reduction.
    """
    exact = jm.solve(step, theta, u0, h=h, solver=jm.Sequential(segment=solver.interval))
    lam = jax.grad(loss)(exact.u_final)
    state = jm.solve(step, theta, u0, h=h, solver=solver).residual_norms
    adjoint = jm.adjoint_solve(step, theta, exact, lam, h=h, solver=solver).residual_norms
    return state, adjoint, exact


def measuring(problem: jm.Problem, solver: jm.MGRIT) -> Callable[[jm.Params, Any], dict[str, float]]:
    """(parameters, batch) -> the first cycle's reduction of state and adjoint residual, and the law where there is one.

    Args:
        problem: What is trained.
        solver: Of state and adjoint.
    """
    twice = replace(solver, cycles=2, skip_first_down=False, rtol=None, atol=None)

    @jax.jit
    def of(params: jm.Params, batch: Any) -> dict[str, jax.Array]:
        x, y = batch
        step, theta, h = problem.step, params.layers, problem.h

        def loss(u: PyTree) -> jax.Array:
            return problem.loss(params.closing, u, y)[0]

        state, adjoint, exact = residuals(step, theta, problem.opening(params.opening, x), loss, h, twice)
        factors = {"state_factor": state[1] / state[0], "adjoint_factor": adjoint[1] / adjoint[0]}
        if isinstance(solver.coarse_step, Picard):
            layers = jax.tree.leaves(theta)[0].shape[0]
            states = jm.trajectory(step, theta, exact, h=h)
            assert solver.interval is not None
            says = law(step, theta, states, h, solver.coarse_step.sweeps, -(-layers // solver.interval))
            factors |= {"law": says.independent, "coherent_law": says.coherent}
        return factors

    return lambda params, batch: {key: float(value) for key, value in of(params, batch).items()}
