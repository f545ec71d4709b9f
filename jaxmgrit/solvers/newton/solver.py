"""`Newton`: the solver, from its options to its run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from jaxmgrit.solvers.base import Outcome, Solver, Sweep
from jaxmgrit.solvers.newton.iteration import arrive, solve_newton
from jaxmgrit.solvers.newton.options import Options
from jaxmgrit.solvers.newton.samples import samples_of
from jaxmgrit.solvers.sequential import sequential, sequential_outcome
from jaxmgrit.system.partition import Level, cut

if TYPE_CHECKING:
    from jaxmgrit._pytree import PyTree
    from jaxmgrit._types import State
    from jaxmgrit.backend.base import Backend
    from jaxmgrit.system.grid import Grid
    from jaxmgrit.system.network import Network
    from jaxmgrit.system.step import Slot

# Layers per interval on a CPU, where the tangents of one layer after another fill its vector units.
INTERVAL = 64

# On an accelerator: the shortest interval, and how many entries the Jacobians of all intervals may have.
SHORTEST, ENTRIES = 16, 1 << 24

# Components per sample above which a layer's Jacobian costs too much to be worth it.
WIDEST = 128


# Options first: their `has_tolerance` must be found before the protocol's.
@dataclass(frozen=True)
class Newton(Options, Solver):
    """Newton's method on the values at the intervals' ends: for recurrences with small states.

    Two-level multigrid with F-relaxation whose coarse step is the linearised interval: one sweep over all intervals
    computes where each arrives and its exact Jacobian per sample, and one recurrence of products of Jacobians and
    vectors corrects all C-points. Convergence is quadratic; the adjoint, being linear, is exact after one iteration,
    whichever solver the state came from: `propagate(..., solver=jm.Sequential(), adjoint=jm.Newton())`. A wrong
    Jacobian costs iterations, never correctness: the first k C-points are exact after k.

    Choose it for thousands of layers of few components each (GRU, LSTM, state-space cells, time steppers). A layer
    costs d + 1 tangents, for d components per sample. Chaotic networks have no such parallel solution; they end in
    the sequential fallback, which the result says.

    Args:
        coarsening_factor: m >= 1, layers per interval. None: 64; on an accelerator, where the verbs know the state, the
            smallest power of two >= 16 with which all Jacobians have at most 2^24 entries. Longer intervals are the
            safeguard where Newton does not converge.
        jacobian: "full": a matrix per sample. "channels": the leaves have one shape and interact at equal positions
            only (diagonal cells; a pair of leaves like an LSTM's without mixing): as many tangents as leaves, at any
            width.
        batch_axis: the samples' axis of every leaf; None: the whole state is one sample. Samples that are coupled
            (batch normalisation) are noticed in the first iteration, and the result says so.
        iterations: at most so many, >= 1; exactly so many where rtol and atol are None.
        rtol: stop when the residual norm is at most `rtol` times the first recorded one.
        atol: stop when the residual norm is at most `atol`. With either, a residual at the level of rounding (at every
            C-point, in every leaf and sample) counts as converged too: a tolerance of 0 asks for just that.
        sequential_fallback: where the tolerance is not reached, propagate one layer after another instead, so that the
            result is exact whatever the network. It gives up when after 8 iterations fewer than a quarter of the
            other intervals meet the tolerance.
        intervals_per_sweep: how many intervals go through one batched sweep at a time; None: a good choice for the
            platform.

    Raises:
        ValueError, TypeError: an option is out of its range; the message names it.

    A recorded residual is that before the iteration's correction. With a tolerance, the state's first iteration follows
    relaxations, which go on while they reduce the residual tenfold (where intervals forget they do without any
    iteration, and no residual is recorded), and a sweep without tangents (for the adjoint with its gradient: the
    gradient's own sweep) follows each correction and decides. All Jacobians together are K B d^2 numbers for K
    intervals and B samples.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> cell = lambda x, u, h: jnp.tanh(u @ jnp.full((4, 4), 0.2) + x)
        >>> inputs, u0 = jnp.ones((1000, 2, 4)), jnp.zeros((2, 4))
        >>> sol = jm.solve(cell, inputs, u0, h=1.0, solver=jm.Newton(32))
        >>> jm.Result(int(sol.result)).name
        'CONVERGED'

    Source: Lim et al. 2024 (arXiv 2309.12252) and Gonzalez et al. 2024 (arXiv 2407.19115) iterate on every step; on
    intervals it is MGRIT's ideal coarse operator, linearised.
    """

    own_adjoint: ClassVar[bool] = True

    @property
    def interval(self) -> int:
        """Layers per interval."""
        return INTERVAL if self.coarsening_factor is None else self.coarsening_factor

    def fitted(self, layers: int, state: State, backend: Backend) -> Newton:
        """With layers per interval that suit the state and the platform, where none were given."""
        if self.coarsening_factor is not None:
            return self
        m = INTERVAL
        if backend.platform != "cpu":
            samples = samples_of(state, self.jacobian, self.batch_axis)
            # All Jacobians have N B d^2 / m entries: m doubles until these are at most ENTRIES.
            entries = layers * samples.count * samples.size**2
            m = max(SHORTEST, 1 << max(0, math.ceil(math.log2(max(1, entries) / ENTRIES))))
        return replace(self, coarsening_factor=_at_most(m, layers, backend.size))

    def hierarchy(
        self, steps: int, devices: int = 1, *, front: bool = False, ragged: bool = False
    ) -> tuple[Level, ...]:
        """One level; the incomplete interval, where there is one, leads to a C-point too."""
        m = self.interval if self.coarsening_factor is not None else _at_most(INTERVAL, steps, devices)
        return cut([steps], [min(m, steps)], devices, front=front, ragged=True)

    def tangents(self, state: State) -> PyTree:
        """Those of all components of a sample."""
        return samples_of(state, self.jacobian, self.batch_axis).basis()

    def is_sequential(self, levels: Sequence[Level]) -> bool:
        """With one interval alone."""
        return levels[0].intervals == 1

    def check(self, network: Network, slot: Slot, state: State) -> None:
        """Refuse states whose Jacobians would cost too much, or that are not made of samples."""
        samples = samples_of(state, self.jacobian, self.batch_axis)
        if samples.size > WIDEST:
            whole = " (batch_axis=None makes the whole state one sample)" if self.batch_axis is None else ""
            raise ValueError(
                f"Newton: a sample of the state has {samples.size} components{whole}, more than {WIDEST}: its Jacobian "
                f"would cost as much as {samples.size} layers; give jacobian='channels' if leaves interact at equal "
                "positions only, else solver=jm.MGRIT(...) or jm.Sequential()."
            )

    def run(self, grids: Sequence[Grid], guess: State, initial: State) -> Outcome:
        """Iterations, or one run through the interval where there is only one."""
        return self.run_and_sweep(grids, guess, initial, lambda ends: (arrive(grids[0], ends, initial), None))[0]

    def run_and_sweep(
        self, grids: Sequence[Grid], guess: State, initial: State, sweep: Sweep
    ) -> tuple[Outcome, PyTree]:
        """Iterations, each followed by the sweep, which tells when to stop."""
        if grids[0].level.intervals == 1:
            outcome = sequential_outcome(grids[0], sequential(grids[0], initial), initial)
            return outcome, sweep(outcome.ends)[1]
        return solve_newton(grids[0], self, guess, initial, sweep)


def _at_most(interval: int, layers: int, devices: int) -> int:
    """The interval, or a shorter one where every device is to have one."""
    return max(1, min(interval, layers // devices))
