"""The network evaluated exactly: layer after layer, as a user will run it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxmgrit as jm
from experiments.networks import affine

BATCH = 16_384  # points evaluated at a time


def evaluator(problem: jm.Problem, data: tuple[jax.Array, jax.Array]) -> Callable[[jm.Params], tuple[float, float]]:
    """A function from parameters to the exact loss and accuracy on `data` = (x, y), compiled once."""
    evaluate = jax.jit(problem.evaluate)

    def figures(params: jm.Params) -> tuple[float, float]:
        loss, aux = evaluate(params, data)
        return float(loss), float(aux["accuracy"])

    return figures


def predict(problem: jm.Problem, params: jm.Params, x: np.ndarray) -> np.ndarray:
    """The exactly evaluated network's class of each point: (points,) integers."""

    @jax.jit
    def classes(params: jm.Params, x: jax.Array) -> jax.Array:
        u0 = problem.opening(params.opening, x)
        u_final = jm.solve(problem.step, params.layers, u0, h=problem.h, solver=jm.Sequential()).u_final
        return jnp.argmax(affine(params.closing, u_final), axis=1)

    return np.concatenate([classes(params, x[i : i + BATCH]) for i in range(0, len(x), BATCH)])
