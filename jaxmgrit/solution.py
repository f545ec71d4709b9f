"""What a solve returns: values, residual history, and a result code with a sentence; errors are raised on the host."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxmgrit.system.partition import Level

PyTree = Any


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
        "The solve diverged: the residual grew from the first cycle to the last. The layers change too "
        "much over one coarse "
        "step: coarsen less, relax more (cf_relaxations=(1, 1)), use a shorter final time, or use jm.Sequential()."
    ),
    Result.NOT_FINITE: (
        "The solve met a value that is not finite (NaN or infinity): look at the input, the parameters "
        "and the learning rate; "
        "jm.Sequential() tells whether the network itself overflows."
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


class CPoints(NamedTuple):
    """The C-points of the finest level: `initial` is point 0, `ends` the value at the end of each interval.

    `ends` has one entry per interval, padding included, in the order of the layers, and is sharded over the backend.
    """

    initial: PyTree
    ends: PyTree


class _Checked:
    result: jax.Array
    tolerance: bool

    def check(self) -> Self:
        """Return the solution itself, or raise `SolveError` with the sentence of its result (host only)."""
        check(self.result, tolerance=self.tolerance)
        return self


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Solution(_Checked):
    """The state, as `solve` returns it.

    Attributes:
        u_final: u^N.
        c_points: opaque; `guess=` of a later solve accepts it, and any `jax.tree.map` of it.
        residual_norms: (cycles,) recorded norms, NaN after stopping; empty for a sequential solve.
        cycles: how many were done.
        result: code, see `Result`.
        level: the partition of the layers the C-points belong to.
        tolerance: whether a tolerance was asked for.
    """

    u_final: PyTree
    c_points: CPoints
    residual_norms: jax.Array
    cycles: jax.Array
    result: jax.Array
    level: Level = field(metadata={"static": True})
    tolerance: bool = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AdjointSolution(_Checked):
    """The adjoint, as `adjoint_solve` returns it.

    Attributes:
        lam_initial: lam^0.
        c_points: opaque, as in `Solution`; its `initial` entry is lam^N.
        residual_norms: (cycles,) recorded norms, NaN after stopping; empty for a sequential solve.
        cycles: how many were done.
        result: code, see `Result`.
        level: the partition of the layers the C-points belong to.
        tolerance: whether a tolerance was asked for.
    """

    lam_initial: PyTree
    c_points: CPoints
    residual_norms: jax.Array
    cycles: jax.Array
    result: jax.Array
    level: Level = field(metadata={"static": True})
    tolerance: bool = field(metadata={"static": True})


def result_code(finite: Any, converged: Any, diverged: Any) -> jax.Array:
    """The code, as an int32 scalar; what is not finite outranks the rest."""
    code = jnp.where(diverged, Result.DIVERGED.value, Result.CYCLES_USED_UP.value)
    code = jnp.where(converged, Result.CONVERGED.value, code)
    return jnp.where(finite, code, Result.NOT_FINITE.value).astype(jnp.int32)
