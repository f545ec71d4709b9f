"""Backtracking with the Armijo condition, where every trial leaves something that the next one starts from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxmgrit._types import State

PyTree = Any


class Search(NamedTuple):
    """How a line search ended.

    Attributes:
        step_size: of the last trial; accepted or not.
        trials: how many there were.
        accepted: whether the last one fulfils the condition.
        left: what the last trial left.
    """

    step_size: jax.Array
    trials: jax.Array
    accepted: jax.Array
    left: PyTree


def backtrack(
    trial: Callable[[jax.Array, PyTree], tuple[jax.Array, PyTree]],
    start: State,
    objective: jax.Array,
    slope: jax.Array,
    *,
    initial_step: float,
    c1: float,
    most: int,
    wanted: jax.Array,
    agree: Callable[[jax.Array], jax.Array],
) -> Search:
    """Halve the step size until J(x - alpha d) <= J(x) - c1 alpha g'd.

    optax's `scale_by_backtracking_linesearch` evaluates a function of the parameters alone; here a trial continues from
    the states that the one before has left.

    Args:
        trial: (step size, what the last trial left) -> (objective, what it leaves). A value that is not finite is
            refused.
        start: what the first trial starts from.
        objective: J(x).
        slope: g'd.
        initial_step: the first trial's step size.
        c1: in (0, 1).
        most: trials at most.
        wanted: whether to search at all.
        agree: makes a decision the same on all devices.

    Source: Nocedal and Wright, Numerical Optimization, 2006, algorithm 3.1.
    """
    no, one = jnp.zeros((), bool), jnp.asarray(initial_step, objective.dtype)

    def going(carry: tuple[Any, ...]) -> jax.Array:
        return carry[0]

    def next_trial(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        _, last = carry
        step_size = jnp.where(last.trials == 0, one, 0.5 * last.step_size)
        value, left = trial(step_size, last.left)
        enough = value <= objective - c1 * step_size * slope.astype(objective.dtype)
        # Ranks that differ in the last digit of the objective would take different branches and wait for ever.
        accepted = agree(jnp.isfinite(value) & enough)
        trials = last.trials + 1
        return ~accepted & (trials < most), Search(step_size, trials, accepted, left)

    # Where no search is wanted there is no pass at all, and what is left is the start.
    begin = Search(one, jnp.zeros((), jnp.int32), no, start)
    return jax.lax.while_loop(going, next_trial, (agree(wanted), begin))[1]
