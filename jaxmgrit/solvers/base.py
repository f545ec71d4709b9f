"""The protocol of solvers, and what a run leaves: a new solver is one class that subclasses `Solver`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax

from jaxmgrit._pytree import PyTree, all_finite
from jaxmgrit.backend.base import REPLICATED, SHARDED_STATES, STATE, Backend, broadcast

if TYPE_CHECKING:
    from jaxmgrit._types import State
    from jaxmgrit.system.grid import Grid
    from jaxmgrit.system.network import Network
    from jaxmgrit.system.partition import Level
    from jaxmgrit.system.step import Slot


class Outcome(NamedTuple):
    """What a run leaves on this device.

    Attributes:
        ends: the values at the ends of the intervals, leaves (share, ...): C-points 1, 2, ...
        final: the value at the end of the run, the same on every device.
        norms: recorded residual norms, shape (cycles,), -1 where there is none.
        cycles: how many were done, ().
        result: code, see `Result`, ().
        scale: norm of all C-points, (), to compare residual norms with.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> theta, u0 = 0.1 * jnp.ones((64, 4, 4)), jnp.ones((2, 4))
        >>> from jaxmgrit.solvers.sequential import sequential, sequential_outcome
        >>> class Serial(jm.Sequential):
        ...     def run(self, grids, guess, initial) -> jm.Outcome:
        ...         return sequential_outcome(grids[0], sequential(grids[0], initial), initial)
        >>> jm.solve(step, theta, u0, h=1 / 64, solver=Serial()).u_final.shape
        (2, 4)
    """

    ends: PyTree
    final: PyTree
    norms: jax.Array
    cycles: jax.Array
    result: jax.Array
    scale: jax.Array


# From C-points, leaves (share, ...): what their intervals arrive at, likewise, and what else the sweep makes of them.
Sweep = Callable[[PyTree], tuple[PyTree, PyTree]]


class Solver:
    """How the values at the ends of intervals are solved for, the same way for the state and for the adjoint.

    Subclass it as a frozen dataclass (programs are remembered by their solver) and define `hierarchy` and `run`. The
    grids handed to `run` are those of `hierarchy`; the finest one's `advance` is one layer of the network (or of its
    transpose, run backwards), and everything a solver does goes through `Grid.sweep` and `run_interval`.

    Attributes:
        intervals_per_sweep: how many intervals go through one batched sweep at a time; None: a good choice for the
            platform.
        coarse_params: (parameters of m layers, leading axis m) -> parameters of one coarse layer; None where
            there is no coarse level.
        coarse_step: (step, theta, u, h, m) -> u_next of a coarse level, or None.
        own_adjoint: whether `propagate` and `scan` take it for the adjoint too where it is named for the state alone;
            else that is exact.
        exact_first: how many intervals from the first layer on have an exact coarse step.
    """

    intervals_per_sweep: int | None = None
    coarse_params: Callable[[PyTree], PyTree] | None = None
    coarse_step: Callable[..., PyTree] | None = None
    own_adjoint: ClassVar[bool] = False
    exact_first: int = 0

    @property
    def has_tolerance(self) -> bool:
        """Whether the solve stops by a tolerance, so that used-up iterations are a failure."""
        return False

    @property
    def inner_values(self) -> bool:
        """Whether coarse steps of the adjoint are linearised at the state's values inside the intervals, all kept."""
        return False

    @property
    def interval(self) -> int | None:
        """Layers per interval of the finest level; None where that depends on the network."""
        return None

    def fitted(self, layers: int, state: State, backend: Backend) -> Solver:
        """This solver, with options left open chosen for a network of so many layers and states like this one.

        The verbs ask for it, which know the state; trainers, whose partition is older than their first batch, do not.
        """
        return self

    def hierarchy(
        self, steps: int, devices: int = 1, *, front: bool = False, ragged: bool = False
    ) -> tuple[Level, ...]:
        """The levels for a network of `steps` layers on `devices` devices, the finest first; see `partition.cut`.

        Args:
            steps: N.
            devices: over how many the finest level is spread.
            front: whether padding goes before the first layer (for the adjoint) instead of after the last.
            ragged: whether incomplete intervals lead to C-points too (predict-then-sweep needs them).

        Raises:
            ValueError: more devices than intervals.
        """
        raise TypeError(f"{type(self).__name__} does not define hierarchy(steps, devices, *, front, ragged).")

    def tangents(self, state: State) -> PyTree:
        """Tangents whose way through all intervals the adjoint wants to know, leaves (tangents, ...); None: none.

        They are pushed on while the layers are linearised for the gradients: `Grid.linearised`.
        """
        return None

    def is_sequential(self, levels: Sequence[Level]) -> bool:
        """Whether the solve is one run through all layers, which needs no guess and is exact."""
        return False

    def check(self, network: Network, slot: Slot, state: State) -> None:
        """Raise a TypeError or ValueError unless this solver can take the network; nothing is computed.

        Args:
            network: the checked network.
            slot: shapes of one layer.
            state: shapes of the state.
        """

    def run(self, grids: Sequence[Grid], guess: State, initial: State) -> Outcome:
        """Solve from a guess of the values at the intervals' ends, on this device.

        Args:
            grids: ready to run, the finest first; the levels are those of `hierarchy`.
            guess: leaves (share, ...).
            initial: the value the run starts from, without a leading axis.
        """
        raise TypeError(f"{type(self).__name__} does not define run(grids, guess, initial).")

    def run_and_sweep(
        self, grids: Sequence[Grid], guess: State, initial: State, sweep: Sweep
    ) -> tuple[Outcome, PyTree]:
        """`run`, and what a sweep over all intervals makes of the final C-points (the gradients, say).

        A solver that needs a last sweep to know how well its C-points fit takes this one.
        """
        outcome = self.run(grids, guess, initial)
        return outcome, sweep(outcome.ends)[1]


def is_finite(state: State, backend: Backend) -> jax.Array:
    """Whether every entry of a state is finite, in all parts of the batch."""
    # Inside `lift` there are sums, no logical and: the parts of the batch with a bad entry are counted.
    return backend.data_sum((~all_finite(state)).astype("int32")) == 0


def at_last_interval(grid: Grid, value: Callable[[int], PyTree]) -> PyTree:
    """The value of the interval in which the run ends, given its position on its device, on every device."""
    level = grid.level
    device, local = divmod(level.first_interval if grid.backward else level.last_interval, level.share)
    # All devices run one program, so each computes `value` there; only that of the one with this interval is kept.
    return broadcast(grid.backend, value(local), device)


# Ends are cut over the layers and the batch, the final value over the batch alone.
OUTCOME_SPECS = Outcome(SHARDED_STATES, STATE, REPLICATED, REPLICATED, REPLICATED, REPLICATED)
