"""What is trained: opening layer, hidden layers, closing layer and loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from jaxmgrit._checks import check_scalar, is_scalar
from jaxmgrit._types import Arrays, State
from jaxmgrit.backend.base import Backend
from jaxmgrit.backend.local import LOCAL
from jaxmgrit.solve import solve
from jaxmgrit.solvers.base import Solver
from jaxmgrit.solvers.sequential import SEQUENTIAL

PyTree = Any


class Params(NamedTuple):
    """All parameters of a network.

    Attributes:
        opening: the opening layer's, any pytree.
        layers: the hidden layers', every leaf with leading axis N.
        closing: the closing (classification) layer's, any pytree.
    """

    opening: PyTree
    layers: PyTree
    closing: PyTree


@dataclass(frozen=True)
class Problem:
    """J = loss(closing, u^N, y) + sum_n running_cost(theta^n, u^n, h) + penalty(params), u^0 = opening(theta_open, x).

    Args:
        opening: (theta_open, x) -> u0.
        step: Phi(theta, u, h) -> u_next, one hidden layer.
        loss: (theta_close, u_final, y) -> (scalar, aux): the mean over the batch, and anything worth reporting.
        h: step size, a scalar or one per layer, shape (N,); T/N for final time T.
        running_cost: (theta, u, h) -> scalar, or None.
        penalty: (params) -> scalar, or None; `params.layers` has leading axis N.

    Raises:
        TypeError: one of the functions is not a function.
    """

    opening: Callable[[PyTree, Any], PyTree]
    step: Callable[[PyTree, PyTree, Any], PyTree]
    loss: Callable[[PyTree, PyTree, Any], tuple[Any, Any]]
    h: Any
    running_cost: Callable[[PyTree, PyTree, Any], Any] | None = None
    penalty: Callable[[Params], Any] | None = None

    def __post_init__(self) -> None:
        for name in ("opening", "step", "loss", "running_cost", "penalty"):
            f = getattr(self, name)
            if not callable(f) and not (f is None and name in ("running_cost", "penalty")):
                raise TypeError(f"Problem: {name}={f!r} is not a function.")

    def evaluate(
        self, params: Params, batch: tuple[Any, Any], *, solver: Solver = SEQUENTIAL, backend: Backend = LOCAL
    ) -> tuple[Any, Any]:
        """The loss and its aux on a batch (x, y), by default exactly: one layer after another."""
        x, y = batch
        u0 = self.opening(params.opening, x)
        check_objective(self, params, u0, y)
        sol = solve(self.step, params.layers, u0, h=self.h, solver=solver, backend=backend)
        loss, aux = self.loss(params.closing, sol.u_final, y)
        return loss, aux


def check_objective(problem: Problem, params: Params, u_final: State, y: Arrays) -> None:
    """Raise a TypeError unless the loss returns (one real number, aux) and the penalty one real number."""
    result = jax.eval_shape(problem.loss, params.closing, u_final, y)
    if not isinstance(result, tuple) or len(result) != 2 or not is_scalar(result[0]):
        raise TypeError(
            f"loss must return (scalar, aux), got {result}; reduce it to the mean over the batch, a floating-point "
            "number; aux may be None."
        )
    if problem.penalty is not None:
        check_scalar(jax.eval_shape(problem.penalty, params), "penalty")
