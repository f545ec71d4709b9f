"""The solvers that are worth a try on a network of some depth and width."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import is_inexact
from jaxmgrit.solvers.mgrit.coarse import all_layers, average, injection, midpoint, picard, zero_step
from jaxmgrit.solvers.mgrit.solver import MGRIT
from jaxmgrit.solvers.newton.solver import Newton
from jaxmgrit.solvers.sequential import Sequential

if TYPE_CHECKING:
    from jaxmgrit._types import Layers, State
    from jaxmgrit.solvers.base import Solver

# Components of a sample up to which all tangents of a layer may pay, and from which those of single channels may.
WIDEST, NARROWEST = 32, 4

# Layers of the intervals of Newton and of relaxation alone, within which a network may forget.
LONG = 64

# Fewer layers have nothing to be done side by side.
FEWEST = 8

# Why a candidate was dropped.
MISSES = "misses the tolerance"
SLOW = "slower on all devices asked for"
NO_TIME = "no time left"


class Candidate(NamedTuple):
    """A pair of solvers to be tried; those that count cycles or iterations are given as many as the tolerance takes.

    Attributes:
        name: what a user calls it; equal for all lengths of intervals.
        solver: for the state.
        adjoint: for the adjoint.
    """

    name: str
    solver: Solver
    adjoint: Solver

    @property
    def factor(self) -> int:
        """Layers per interval."""
        return self.adjoint.interval or 1

    @property
    def is_newton(self) -> bool:
        """Whether the adjoint, being linear, is exact after one iteration."""
        return isinstance(self.adjoint, Newton)

    @property
    def is_iterated(self) -> bool:
        """Whether the number of cycles or iterations matters."""
        return not (self.is_newton and isinstance(self.solver, Sequential))

    def times(self, count: int) -> Candidate:
        """With so many cycles or iterations."""
        if self.is_newton:
            solver = replace(self.solver, iterations=count) if isinstance(self.solver, Newton) else self.solver
            return self._replace(solver=solver)
        solver = replace(self.solver, cycles=count)  # type: ignore[type-var]
        return self._replace(solver=solver, adjoint=solver)

    @property
    def cycles(self) -> int:
        """Cycles or iterations of the state."""
        return int(getattr(self.solver, "cycles", 0) or getattr(self.solver, "iterations", 1))

    def __str__(self) -> str:
        if not self.is_iterated:
            return f"{self.name}, m = {self.factor}"
        what = "iteration" if self.is_newton else "cycle"
        return f"{self.name}, m = {self.factor}, {self.cycles} {what}{'s' * (self.cycles > 1)}"


def candidates(layers: int, u0: State, devices: int) -> Iterator[Candidate]:
    """Candidates for so many layers on so many devices, the likeliest first; every device has an interval.

    About as many intervals as layers in one where a coarse step is one layer's; Newton's and relaxation's are longer.
    """
    # Every device has an interval, and there are two at least.
    most = layers // max(2, devices)
    if layers < FEWEST or most < 2:
        return
    # About sqrt(N): as many steps in the serial recurrence as layers in an interval.
    root = min(most, 2 ** max(1, round(math.log2(layers) / 2)))
    long = min(most, LONG, max(2, layers // 4))
    width, shapes = components(u0), {x.shape for x in jax.tree.leaves(u0)}

    def two_levels(name: str, m: int, **choices: Any) -> Candidate:
        solver = MGRIT(m, levels=2, cycles=1, **choices)
        return Candidate(name, solver, solver)

    def kept(sweeps: int) -> Candidate:
        return two_levels(f"picard({sweeps})", root, coarse_params=all_layers, coarse_step=picard(sweeps))

    # Neither tolerance nor fallback: a trial counts iterations, and must see where they do not converge.
    newton = Newton(long, iterations=1, rtol=None, sequential_fallback=False)
    if width <= WIDEST:
        yield Candidate("sequential, then Newton's adjoint", Sequential(long), newton)
        yield Candidate("Newton", newton, newton)
    yield kept(1)
    yield two_levels("average, midpoint", root, coarse_params=average, coarse_step=midpoint)
    yield two_levels("relaxation only", long, coarse_step=zero_step)
    # As many sweeps as an interval has layers are exact, but save nothing.
    if root > 2:
        yield kept(2)
    yield two_levels("average", root, coarse_params=average)
    yield two_levels("injection", root, coarse_params=injection)
    yield two_levels("injection, midpoint", root, coarse_params=injection, coarse_step=midpoint)
    if len(shapes) == 1 and width >= NARROWEST:
        channels = replace(newton, jacobian="channels")
        yield Candidate("Newton by channels", channels, channels)
    if root > 3:
        yield kept(3)


def components(u0: State) -> int:
    """Entries of one sample's state, the samples along the leading axis."""
    return sum(math.prod(x.shape[1:]) if x.ndim > 1 else x.size for x in jax.tree.leaves(u0))


def roughness(theta: Layers) -> float | None:
    """By how much neighbouring layers differ, over their size; None where nothing is floating point.

    About 1.4 for independent layers, about 1/N for layers sampled from one smooth theta(t).
    """
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(theta) if is_inexact(x) and x.shape[0] > 1]
    if not leaves:
        return None
    change = sum(float(jnp.sum(jnp.abs(x[1:] - x[:-1]) ** 2)) for x in leaves)
    size = sum(float(jnp.sum(jnp.abs(x[1:]) ** 2)) for x in leaves)
    return math.sqrt(change / size) if size > 0 else 0.0


class Row(NamedTuple):
    """One candidate, as measured and modelled.

    Attributes:
        name: what it is.
        solver: ready to use; None if it was dropped.
        adjoint: likewise.
        error: relative error of its gradient; NaN where it was not measured.
        state_factor: contraction of the state's residual per cycle; NaN where fewer than two were recorded.
        adjoint_factor: of the adjoint's.
        seconds: of the loss's gradient by number of devices: measured on the backend's own, else modelled.
        reason: why it was dropped; "" if it was not.
    """

    name: str
    solver: Solver | None
    adjoint: Solver | None
    error: float = math.nan
    state_factor: float = math.nan
    adjoint_factor: float = math.nan
    seconds: dict[int, float] = {}
    reason: str = ""


@dataclass(frozen=True)
class Layer:
    """Seconds that one layer takes.

    Attributes:
        phi: one evaluation.
        vjp: one pullback to state and parameters.
        wide: a wide step of `width` layers at once, over one layer's evaluation and pullback.
        width: layers of a wide step.
    """

    phi: float
    vjp: float
    wide: float = math.nan
    width: int = 1
