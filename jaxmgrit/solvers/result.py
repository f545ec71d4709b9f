"""How a solve ended: a code with a sentence; errors are raised on the host."""

from __future__ import annotations

import enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Result(enum.IntEnum):
    """How a solve ended."""

    CONVERGED = 0
    CYCLES_USED_UP = 1
    DIVERGED = 2
    NOT_FINITE = 3

    @property
    def sentence(self) -> str:
        """What happened and what helps."""
        return _SENTENCES[self]


_SENTENCES = {
    Result.CONVERGED: "The solve converged.",
    Result.CYCLES_USED_UP: (
        "All cycles were used; where a tolerance was set, it was not reached: allow more cycles, relax more "
        "(cf_relaxations), coarsen less, or use jm.Sequential()."
    ),
    Result.DIVERGED: (
        "The solve diverged: the residual grew from the first cycle to the last. The layers change too much over one "
        "coarse step: coarsen less, relax more (cf_relaxations=(1, 1)), use a shorter final time, or use "
        "jm.Sequential()."
    ),
    Result.NOT_FINITE: (
        "The solve met a value that is not finite (NaN or infinity): look at the input, the parameters and the "
        "learning rate; jm.Sequential() tells whether the network itself overflows."
    ),
}


class SolveError(RuntimeError):
    """A solve did not end well; `result` holds its code."""

    def __init__(self, result: Result, message: str) -> None:
        super().__init__(message)
        self.result = result


def check(result: Any, *, tolerance: bool = False) -> None:
    """Raise if a result code (or any of an array of them) reports divergence or values that are not finite.

    Args:
        result: an integer code or array of codes, on the host (not inside a jitted function).
        tolerance: whether a tolerance was asked for; then used-up cycles raise as well.

    Raises:
        SolveError: with the sentence of the worst code.
    """
    worst = Result(int(np.max(np.asarray(result))))
    if worst >= Result.DIVERGED or (tolerance and worst == Result.CYCLES_USED_UP):
        raise SolveError(worst, worst.sentence)


def result_code(finite: Any, converged: Any, diverged: Any) -> jax.Array:
    """The code, as an int32 scalar; what is not finite outranks the rest."""
    code = jnp.where(diverged, Result.DIVERGED.value, Result.CYCLES_USED_UP.value)
    code = jnp.where(converged, Result.CONVERGED.value, code)
    return jnp.where(finite, code, Result.NOT_FINITE.value).astype(jnp.int32)
