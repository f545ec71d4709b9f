"""What is trained: opening layer, hidden layers, closing layer and loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmgrit._checks import check_layers, check_scalar, check_state, integer, is_scalar
from jaxmgrit.backend.local import LOCAL
from jaxmgrit.solvers.sequential import SEQUENTIAL
from jaxmgrit.system.network import Network, make_network
from jaxmgrit.system.partition import Level, lay_out
from jaxmgrit.training.common import NOTHING, Extra, Layer, given_of, needs_common, of_layer, of_numbered
from jaxmgrit.verbs.state import solve_network

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Layers, State
    from jaxmgrit.backend.base import Backend
    from jaxmgrit.solvers.base import Solver
    from jaxmgrit.training.state import Params

PyTree = Any


@dataclass(frozen=True)
class Problem:
    """J = loss(closing, u^N, y) + sum_n running_cost(theta^n, u^n, h) + penalty(params), u^0 = opening(theta_open, x).

    Args:
        opening: (theta_open, x) -> u0.
        step: Phi(theta, u, h) -> u_next, one hidden layer; Phi(theta, u, h, common) with shared parameters, a context
            or a key, see `Common`.
        loss: (theta_close, u_final, y) -> (scalar, aux): the mean over the batch, and anything worth reporting.
        h: step size, a scalar or one per layer, shape (N,); T/N for final time T.
        running_cost: (theta, u, h) -> scalar, or None; with `common` where the step has it.
        penalty: (params) -> scalar, or None; `params.layers` has leading axis N.
        layers: N, for networks no parameter of which belongs to one layer: `params.layers` is then empty, {} say. None:
            the leading axis of `params.layers`.

    Raises:
        TypeError, ValueError: one of the functions is not a function, or layers not an integer >= 1.

    Example:
        >>> import jax.numpy as jnp, jaxmgrit as jm
        >>> tied = jm.Problem(  # a weight that all 16 layers share
        ...     opening=lambda p, x: x @ p,
        ...     step=lambda theta, u, h, common: u + h * jnp.tanh(u @ common.shared),
        ...     loss=lambda p, u, y: (jnp.mean((u @ p - y) ** 2), None),
        ...     h=1 / 16,
        ...     layers=16,
        ... )
        >>> params = jm.Params(jnp.ones((2, 4)), {}, jnp.ones((4, 1)), shared=0.1 * jnp.ones((4, 4)))
        >>> tied.evaluate(params, (jnp.ones((8, 2)), jnp.zeros((8, 1))))[0].shape
        ()
    """

    opening: Callable[[PyTree, Any], PyTree]
    step: Callable[..., PyTree]
    loss: Callable[[PyTree, PyTree, Any], tuple[Any, Any]]
    h: Any
    running_cost: Callable[..., Any] | None = None
    penalty: Callable[[Params], Any] | None = None
    layers: int | None = None

    def __post_init__(self) -> None:
        for name in ("opening", "step", "loss", "running_cost", "penalty"):
            f = getattr(self, name)
            if not callable(f) and not (f is None and name in ("running_cost", "penalty")):
                raise TypeError(f"Problem: {name}={f!r} is not a function.")
        if self.layers is not None:
            integer("Problem", "layers", self.layers, 1)

    def evaluate(
        self,
        params: Params,
        batch: tuple[Any, Any],
        *,
        solver: Solver = SEQUENTIAL,
        backend: Backend = LOCAL,
        context: PyTree = None,
        key: Any = None,
    ) -> tuple[Any, Any]:
        """The loss and its aux on a batch (x, y), by default exactly: one layer after another.

        Args:
            params: layers with leading axis N.
            batch: (x, y).
            solver: of the state.
            backend: where the layers live.
            context: what `common.context` is, see `Common`.
            key: of random layers; None: `common.key` is None.
        """
        x, y = batch
        u0 = check_state(self.opening(params.opening, x), "opening(params.opening, x)")
        layers = number_of_layers(self, params.layers)
        # With the whole batch, as the loss below gets it; only then is the state cut into parts.
        check_objective(self, params, u0, y)
        u0 = backend.split_batch(u0)
        solver = solver.fitted(layers, u0, backend)
        network, [solver] = hidden_layers(self, params, u0, Extra(context, key), (solver,), backend, layers)
        sol = solve_network(network, u0, solver, None, backend)
        loss, aux = self.loss(params.closing, backend.join_batch(sol.u_final), y)
        return loss, aux


def number_of_layers(problem: Problem, theta: Layers) -> int:
    """N, from the layers' parameters or, where there are none, from the problem.

    Raises:
        ValueError: neither says it, or they differ; or leading axes differ.
        TypeError: a leaf is not an array.
    """
    if not jax.tree.leaves(theta) and problem.layers is not None:
        return problem.layers
    layers = check_layers(theta, "params.layers")
    if problem.layers not in (None, layers):
        raise ValueError(
            f"params.layers has leading axis {layers}, but the problem says layers={problem.layers}: parameters that "
            "all layers share belong under jm.Params(shared=...), those of single layers need the leading axis N."
        )
    return layers


def hidden_layers(
    problem: Problem,
    params: Params,
    u0: State,
    extra: Extra,
    solvers: Sequence[Solver],
    backend: Backend,
    layers: int,
    level: Level | None = None,
) -> tuple[Network, list[Solver]]:
    """The checked hidden layers, and the solvers that suit them.

    Args:
        problem: whose step and running cost are taken.
        params: with layers of leading axis N, or laid out in slots and spread where `level` says how.
        u0: the opening state, a part of the batch as the backend splits it.
        extra: of the whole batch.
        solvers: the user's.
        backend: where the layers live.
        layers: N.
        level: see `params`.
    """
    common = takes_common(problem, params, extra)
    # Numbers are what keys are folded with, and the only leaf with axis N where no parameter is a single layer's.
    numbered = extra.key is not None or not jax.tree.leaves(params.layers)
    theta = params.layers
    if numbered:
        index: Any = jnp.arange(layers, dtype=jnp.int32)
        theta = Layer(theta, index if level is None else backend.scatter(lay_out(index, level)))
        solvers = list(map(of_numbered, solvers))
    cost = problem.running_cost
    network = make_network(
        of_layer(problem.step, common, numbered),
        theta,
        u0,
        problem.h,
        *solvers,
        running_cost=None if cost is None else of_layer(cost, common, numbered),
        # By N a network knows that its parameters are laid out already.
        layers=None if level is None else layers,
        parts=backend.data_size,
        given=given_of(params.shared, extra, backend) if common or numbered else None,
    )
    return network, list(solvers)


def takes_common(problem: Problem, params: Params, extra: Extra = NOTHING) -> bool:
    """Whether step and running cost have a fourth argument: there is something in it, or the step asks for it."""
    nothing = all(x is None for x in (params.shared, extra.context, extra.key))
    return not nothing or needs_common(problem.step)


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
