"""What a solve returns: values, C-points to start the next solve from, residual history, and a result code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import jax

from jaxmgrit.solvers.result import check
from jaxmgrit.system.partition import Level

PyTree = Any


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
        residual_norms: (cycles,) recorded norms, -1 where there is none (after stopping, a skipped cycle);
            empty for a sequential solve.
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
        residual_norms: (cycles,) recorded norms, -1 where there is none (after stopping, a skipped cycle);
            empty for a sequential solve.
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
