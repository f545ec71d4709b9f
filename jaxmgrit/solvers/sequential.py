"""One layer after another: the reference, and what other solvers fall back on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxmgrit._checks import integer
from jaxmgrit._pytree import PyTree, norm_dtype
from jaxmgrit.solvers.base import Outcome, Solver, at_last_interval, is_finite
from jaxmgrit.solvers.result import result_code
from jaxmgrit.system.grid import Grid, run_interval
from jaxmgrit.system.partition import Level, cut

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, State


@dataclass(frozen=True)
class Sequential(Solver):
    """One layer after another: the reference result, and the tuned baseline.

    States are kept at the ends of segments only; the adjoint recomputes the states within a segment.

    Args:
        segment: layers per segment; None: the coarsening factor of the multigrid solver it is paired with, else about
            sqrt(N). With one segment for all layers (N or more), `propagate` and `scan` on one device are the plain
            program, as they are without a solver.

    Raises:
        ValueError: segment < 1.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> theta, u0 = 0.1 * jnp.ones((64, 4, 4)), jnp.ones((2, 4))
        >>> sol = jm.solve(step, theta, u0, h=1 / 64, solver=jm.Sequential())
        >>> bool(jnp.allclose(sol.u_final, jm.propagate(step, theta, u0, h=1 / 64)))
        True
    """

    segment: int | None = None

    def __post_init__(self) -> None:
        if self.segment is not None:
            integer("Sequential", "segment", self.segment, 1)

    @property
    def interval(self) -> int | None:
        """Layers per segment; None: about sqrt(N)."""
        return self.segment

    def hierarchy(
        self, steps: int, devices: int = 1, *, front: bool = False, ragged: bool = False
    ) -> tuple[Level, ...]:
        """One level, in segments."""
        # ceil(sqrt(N)): about as many states are kept as are recomputed at a time, which takes the least memory.
        segment = min(steps, self.segment or math.isqrt(steps - 1) + 1)
        return cut([steps], [segment], devices, front=front, ragged=ragged)

    def is_sequential(self, levels: Sequence[Level]) -> bool:
        """Always."""
        return True

    def run(self, grids: Sequence[Grid], guess: State, initial: State) -> Outcome:
        """One segment after another; the guess is of no use."""
        return sequential_outcome(grids[0], sequential(grids[0], initial), initial)


def sequential_outcome(grid: Grid, ends: State, initial: State) -> Outcome:
    """What a sequential run leaves."""
    final = at_last_interval(grid, lambda local: jax.tree.map(lambda x: x[local], ends))
    code = result_code(is_finite(final, grid.backend), True, False)
    none = jnp.zeros((0,), norm_dtype(initial))
    return Outcome(ends, final, none, jnp.zeros((), jnp.int32), code, jnp.zeros((), none.dtype))


def sequential(grid: Grid, initial: State) -> PyTree:
    """One interval after another: exact values at the intervals' ends, leaves (share, ...)."""

    def interval(value: State, args: Arrays) -> tuple[PyTree, PyTree]:
        block, mask = args
        # No right-hand side: g = 0 on level 0, and an adjoint's running cost is part of its step.
        value = run_interval(grid, value, block, mask, None)[0]
        return value, value

    def chain(start: State) -> tuple[PyTree, PyTree]:
        return jax.lax.scan(interval, start, (grid.blocks, grid.mask), reverse=grid.backward)

    return relay(grid, chain, initial)


def relay(grid: Grid, chain: Callable[[PyTree], tuple[PyTree, PyTree]], initial: State) -> PyTree:
    """What one run through all devices leaves on this one: each runs its chain in its turn and hands on the end.

    Args:
        grid: tells the devices and the direction.
        chain: the value that enters this device -> (the one that leaves it, what is to be kept on the way).
        initial: the value that enters the first device.
    """
    size = grid.backend.size
    if size == 1:
        return chain(initial)[1]
    index = grid.backend.index()
    turn = size - 1 - index if grid.backward else index

    def one(carry: State, number: jax.Array) -> tuple[PyTree, None]:
        entering, done = carry
        # Devices may branch differently, since a chain sends nothing to other layers' devices; the shift is for all.
        done = jax.lax.cond(number == turn, chain, lambda _: done, entering)
        leaving = jax.tree.map(lambda x: x[None], done[0])
        handed = grid.backend.shift(leaving, -1 if grid.backward else 1, initial)
        return (jax.tree.map(lambda x: x[0], handed), done), None

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(chain, initial))
    # Of the carry (entering, (leaving, kept)) after the last pass, what was kept.
    return jax.lax.scan(one, (initial, nothing), jnp.arange(size, dtype=jnp.int32))[0][1][1]


def match_segments(solver: Solver, adjoint: Solver) -> tuple[Solver, Solver]:
    """Let a Sequential of unspecified segments keep its states where its partner wants them."""

    # With equal intervals the adjoint starts from the kept C-points; else all N states are made and laid out anew.
    def matched(one: Solver, partner: Solver) -> Solver:
        if isinstance(one, Sequential) and one.segment is None:
            return replace(one, segment=partner.interval)
        return one

    return matched(solver, adjoint), matched(adjoint, solver)


SEQUENTIAL = Sequential()
