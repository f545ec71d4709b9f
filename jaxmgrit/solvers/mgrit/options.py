"""How a solve is done: `MGRIT` and `Sequential`, frozen objects that check themselves when made."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax

from jaxmgrit.solvers.mgrit.coarse import injection, same_step

PyTree = Any


@dataclass(frozen=True)
class MGRIT:
    """Multigrid reduction in time: a full approximation scheme over the layer index.

    Args:
        coarsening_factor: m >= 2, or one per level (a tuple of p factors allows at most p + 1 levels).
        levels: how many grids at most, the finest counted; 1 is sequential propagation. None: as many as `min_coarse`
            allows.
        min_coarse: a coarser grid exists only if it has at least max(1, min_coarse) steps.
        cf_relaxations: nu on the finest level and on all levels below; 0 is F-, 1 FCF-, 2 FCFCF-relaxation.
        cycle: "V" or "F".
        cycles: how many cycles; at most so many when a tolerance is given.
        rtol: stop when the recorded residual norm is at most `rtol` times the first one.
        atol: stop when the recorded residual norm is at most `atol`. With either tolerance, a residual at the level of
            rounding (one unit in the last place of the C-points' norm) counts as converged too, since no cycle can
            lower
            it: a tolerance of 0 asks for just that.
        skip_first_down: the first cycle starts on the coarsest level; its recorded residual is NaN.
        coarse_params: `injection`, `average` or a function (parameters of m layers, leading axis m) -> parameters of
        one.
        coarse_step: `same_step`, `midpoint` or a function (step, theta, u, h, m) -> u_next, with h the summed step
            size and
            m the number of layers of the network it replaces.
        norm: of one state's residual, state -> scalar; None: Euclidean over all leaves, batch included.
        intervals_per_sweep: how many intervals go through one batched sweep at a time; None: all on an accelerator, as
            many as the cache likes on a CPU.
        sequential_fallback: where the cycles do not reach the tolerance, propagate one layer after another instead,
            so that
            the result is exact whatever the network.

    Raises:
        ValueError, TypeError: an option is out of its range; the message names it.

    Source: Falgout et al. 2014; Guenther et al. 2020 (arXiv 1812.04352).
    """

    coarsening_factor: int | tuple[int, ...] = 4
    levels: int | None = None
    min_coarse: int = 2
    cf_relaxations: tuple[int, int] = (0, 1)
    cycle: Literal["V", "F"] = "V"
    cycles: int = 2
    rtol: float | None = None
    atol: float | None = None
    skip_first_down: bool = False
    coarse_params: Callable[[PyTree], PyTree] = injection
    coarse_step: Callable[..., PyTree] = same_step
    norm: Callable[[PyTree], jax.Array] | None = None
    intervals_per_sweep: int | None = None
    sequential_fallback: bool = False

    def __post_init__(self) -> None:
        for name in ("coarsening_factor", "cf_relaxations"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.coarsening_factor, tuple):
            if not self.coarsening_factor:
                raise ValueError("MGRIT: coarsening_factor=() is empty; give an integer >= 2 or one per level.")
            for m in self.coarsening_factor:
                integer("MGRIT", "coarsening_factor", m, 2)
        else:
            integer("MGRIT", "coarsening_factor", self.coarsening_factor, 2)
        if self.levels is not None:
            integer("MGRIT", "levels", self.levels, 1)
        integer("MGRIT", "min_coarse", self.min_coarse, 0)
        if not isinstance(self.cf_relaxations, tuple) or len(self.cf_relaxations) != 2:
            raise ValueError(
                f"MGRIT: cf_relaxations={self.cf_relaxations!r} is not a pair; "
                "give (finest level, all levels below), for instance (0, 1)."
            )
        for nu in self.cf_relaxations:
            integer("MGRIT", "cf_relaxations", nu, 0)
        if self.cycle not in ("V", "F"):
            raise ValueError(f"MGRIT: cycle={self.cycle!r} is unknown; choose 'V' or 'F'.")
        integer("MGRIT", "cycles", self.cycles, 1)
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not (is_real(value) and math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"MGRIT: {name}={value!r} is not a finite number >= 0; give one, or None for no tolerance."
                )
        for name in ("skip_first_down", "sequential_fallback"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"MGRIT: {name}={getattr(self, name)!r} is not True or False.")
        if self.sequential_fallback and not self.has_tolerance:
            raise ValueError("MGRIT: sequential_fallback=True needs a tolerance to fail at; set rtol or atol.")
        for name in ("coarse_params", "coarse_step"):
            if not callable(getattr(self, name)):
                raise TypeError(f"MGRIT: {name}={getattr(self, name)!r} is not a function; {_FUNCTIONS[name]}")
        if self.norm is not None and not callable(self.norm):
            raise TypeError(f"MGRIT: norm={self.norm!r} is not a function state -> scalar; give one, or None.")
        if self.intervals_per_sweep is not None:
            integer("MGRIT", "intervals_per_sweep", self.intervals_per_sweep, 1)

    @property
    def has_tolerance(self) -> bool:
        """Whether the solve stops by a tolerance."""
        return self.rtol is not None or self.atol is not None

    def factor(self, level: int) -> int | None:
        """The coarsening factor of a level (0 is the finest), or None where the tuple of factors has ended."""
        if not isinstance(self.coarsening_factor, tuple):
            return self.coarsening_factor
        return self.coarsening_factor[level] if level < len(self.coarsening_factor) else None


@dataclass(frozen=True)
class Sequential:
    """One layer after another: the reference result, and the tuned baseline.

    States are kept at the ends of segments only; the adjoint recomputes the states within a segment.

    Args:
        segment: layers per segment; None: the coarsening factor of the multigrid solver it is paired with, else about
            sqrt(N).

    Raises:
        ValueError: segment < 1.
    """

    segment: int | None = None

    def __post_init__(self) -> None:
        if self.segment is not None:
            integer("Sequential", "segment", self.segment, 1)


Solver = MGRIT | Sequential

_FUNCTIONS = {
    "coarse_params": "give jm.injection, jm.average or (parameters of m layers, leading axis m) -> parameters of one.",
    "coarse_step": "give jm.same_step, jm.midpoint or (step, theta, u, h, m) -> u_next.",
}


def is_real(value: Any) -> bool:
    """Whether an option is a real number (and not a truth value)."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def integer(owner: str, name: str, value: Any, least: int) -> None:
    """Raise a TypeError or ValueError unless an option is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{owner}: {name}={value!r} is not an integer; give an integer >= {least}.")
    if value < least:
        raise ValueError(f"{owner}: {name}={value} is too small; give an integer >= {least}.")


DEFAULT = MGRIT()
SEQUENTIAL = Sequential()


def check_solver(name: str, solver: Any) -> None:
    """Raise a TypeError unless `solver` is an MGRIT or Sequential object."""
    if not isinstance(solver, (MGRIT, Sequential)):
        raise TypeError(f"{name}={solver!r} is not a solver; give jm.MGRIT(...) or jm.Sequential().")


def match_segments(solver: Solver, adjoint: Solver) -> tuple[Solver, Solver]:
    """Let a Sequential of unspecified segments keep its states where its multigrid partner wants them."""

    def matched(one: Solver, partner: Solver) -> Solver:
        if isinstance(one, Sequential) and one.segment is None and isinstance(partner, MGRIT):
            return Sequential(segment=partner.factor(0))
        return one

    return matched(solver, adjoint), matched(adjoint, solver)
