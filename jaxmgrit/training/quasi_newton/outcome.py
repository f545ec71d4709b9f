"""How an iteration of the published loop ended, and what it saw."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import jax

PyTree = Any


class Outcome(enum.IntEnum):
    """How an iteration of the published loop ended, as `PublishedInfo.outcome` codes it.

    A code, since nothing may raise inside a compiled program; `sentence` says what happened and what follows.

    Example:
        >>> import jaxmgrit as jm
        >>> jm.Outcome(0).name, jm.Outcome(0).sentence
        ('STEP', 'A step was accepted.')
    """

    STEP = 0
    CONVERGED = 1
    LINE_SEARCH_FAILED = 2

    @property
    def sentence(self) -> str:
        """What happened and what follows."""
        return _SENTENCES[self]


_SENTENCES = {
    Outcome.STEP: "A step was accepted.",
    Outcome.CONVERGED: "The gradient's norm is below gtol: the parameters stay as they are.",
    Outcome.LINE_SEARCH_FAILED: (
        "No trial lowered the objective enough: the parameters stay as they are, the quasi-Newton pairs are forgotten, "
        "and the next iteration tries the gradient itself, from states that are some cycles further. Where this goes "
        "on, the gradient is too inexact for the objective (more cycles), the steps are too long (a smaller "
        "initial_step, a larger ls_max), or rounding is reached."
    ),
}


class PublishedInfo(NamedTuple):
    """What an iteration saw at the parameters before its update, and how its line search went.

    Attributes:
        loss: at the (inexact) final state.
        aux: the loss function's aux.
        objective: loss, running cost and penalty.
        grad_norm: norm of the (inexact) gradient of the objective.
        residual_norm: of the state, the last recorded; 0 for a sequential solve.
        adjoint_residual_norm: of the adjoint, likewise.
        result: the worse of the two solves' codes, see `Result` and `check`.
        step_size: alpha of the step taken, 0 where none was.
        trials: trials of the line search; the first one counts as 1.
        outcome: code, see `Outcome`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> loss = lambda p, u, y: (jnp.mean((u - y) ** 2), None)
        >>> problem = jm.Problem(lambda p, x: x @ p, step, loss, h=0.1)
        >>> params = jm.Params(jnp.eye(2), 0.1 * jnp.ones((16, 2, 2)), ())
        >>> batch = (jnp.ones((3, 2)), jnp.zeros((3, 2)))
        >>> loop = jm.PublishedLoop(problem, hessian=jm.LBFGS(), solver=jm.MGRIT(4), adjoint=jm.MGRIT(4))
        >>> state, info = jax.jit(loop.step)(loop.init(params, batch), batch)
        >>> jm.Outcome(int(info.outcome)).name
        'STEP'
    """

    loss: jax.Array
    aux: PyTree
    objective: jax.Array
    grad_norm: jax.Array
    residual_norm: jax.Array
    adjoint_residual_norm: jax.Array
    result: jax.Array
    step_size: jax.Array
    trials: jax.Array
    outcome: jax.Array
