"""`MGRIT`: the solver, from its options to its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import jax

from jaxmgrit._checks import (
    alike,
    check_batch_axis,
    check_scalar,
    check_step,
    describe,
    evaluated,
)
from jaxmgrit._pytree import PyTree, repeat
from jaxmgrit.solvers.base import Outcome, Solver
from jaxmgrit.solvers.mgrit.coarse import Picard, all_layers
from jaxmgrit.solvers.mgrit.iteration import iterate
from jaxmgrit.solvers.mgrit.levels import build_levels
from jaxmgrit.solvers.mgrit.options import Options
from jaxmgrit.solvers.sequential import sequential, sequential_outcome
from jaxmgrit.system.kept_layers import Kept
from jaxmgrit.system.step import Slot

if TYPE_CHECKING:
    from jaxmgrit._types import State
    from jaxmgrit.system.grid import Grid
    from jaxmgrit.system.network import Network
    from jaxmgrit.system.partition import Level


# Options first: their `has_tolerance` must be found before the protocol's.
@dataclass(frozen=True)
class MGRIT(Options, Solver):
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
        atol: stop when the recorded residual norm is at most `atol`. A norm over everything hides what is small: a
            sample of size 1 beside one of size 1e6 may be wrong altogether at rtol=1e-6. With either tolerance, a
            residual at the level of rounding (a few units in the last place of the values at every C-point, in every
            leaf and sample) counts as converged too, since no cycle can lower it: a tolerance of 0 asks for just
            that. A solve gives up where its residual has not fallen for some cycles.
        skip_first_down: the first cycle starts on the coarsest level; it records no residual (-1).
        coarse_params: `injection`, `average` or a function (parameters of m layers, leading axis m) -> parameters
            of one; or `all_layers`, which keeps them all.
        coarse_step: `same_step`, `midpoint`, `zero_step` or a function (step, theta, u, h, m) -> u_next, with h the
            summed step size and m the number of layers of the network it replaces; with `all_layers` `picard(p)` or a
            function as described there.
        norm: of one state's residual, state -> scalar; None: Euclidean over all leaves, batch included.
        intervals_per_sweep: how many intervals go through one batched sweep at a time; None: all on an accelerator, as
            many as the cache likes on a CPU.
        sequential_fallback: where the cycles do not reach the tolerance, propagate one layer after another instead,
            so that the result is exact whatever the network.
        relaxation_weight: w > 0 of C-relaxation on every level, u <- w (relaxed) + (1 - w) u; 1 is the plain one.
        batch_axis: the samples' axis in the state's leaves. "To rounding" is asked of every sample by itself (and of
            every C-point and leaf); None: of whole leaves. Leaves without axes are whole.
        exact_first: the first so many intervals run exactly on the coarse levels too, their layers one after another,
            with `coarse_params=all_layers`: where the first layers change the state most, as in pre-norm transformers.

    Raises:
        ValueError, TypeError: an option is out of its range; the message names it.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> theta, u0 = 0.1 * jnp.ones((64, 4, 4)), jnp.ones((2, 4))
        >>> solver = jm.MGRIT(8, levels=2, cycle="V", cycles=20, rtol=1e-4)
        >>> sol = jm.solve(step, theta, u0, h=1 / 64, solver=solver)
        >>> jm.Result(int(sol.result)).name
        'CONVERGED'

    Source: Falgout et al. 2014; Guenther et al. 2020 (arXiv 1812.04352).
    """

    @property
    def inner_values(self) -> bool:
        """As `picard(sweeps, inner_values)` says."""
        return isinstance(self.coarse_step, Picard) and self.coarse_step.inner_values

    @property
    def interval(self) -> int | None:
        """The finest level's coarsening factor."""
        return self.factor(0)

    def hierarchy(
        self, steps: int, devices: int = 1, *, front: bool = False, ragged: bool = False
    ) -> tuple[Level, ...]:
        """The levels, see `Solver.hierarchy`."""
        return build_levels(steps, self, devices, front=front, ragged=ragged)

    def is_sequential(self, levels: Sequence[Level]) -> bool:
        """With one level alone."""
        return len(levels) == 1

    def run(self, grids: Sequence[Grid], guess: State, initial: State) -> Outcome:
        """Cycles, or one interval after another where there is only one level."""
        if len(grids) == 1:
            return sequential_outcome(grids[0], sequential(grids[0], initial), initial)
        return iterate(grids, self, guess, initial)

    def check(self, network: Network, slot: Slot, state: State) -> None:
        """Refuse coarse parameters, coarse steps and norms that do not fit one layer of the network."""
        check_batch_axis("MGRIT", self.batch_axis, state)
        m = self.factor(0)
        if m is None:
            return
        coarse = jax.eval_shape(self.coarse_params, _several(slot.theta, m))
        if self.coarse_params is not all_layers and not alike(coarse, slot.theta):
            raise TypeError(
                f"coarse_params makes {describe(coarse)} from {m} layers, but one layer is "
                f"{describe(slot.theta)}; it must return the parameters of one layer, without the leading axis "
                "(coarse_params=jm.all_layers keeps all m)."
            )
        # A coarse step may branch on m, and what it closes over must be known before the solve: all m are traced.
        for stride in sorted({m, *(level.stride for level in self.hierarchy(network.layers)[1:])}):
            advance = partial(network.with_coarse_step(self).advance, stride=stride, fine=False)
            for one in self._coarse_slots(slot, stride):
                check_step(evaluated(advance, "coarse_step", one, state, network.shared), state, "coarse_step")
        if self.norm is not None:
            check_scalar(jax.eval_shape(self.norm, state), "norm")

    def _coarse_slots(self, slot: Slot, stride: int) -> list[Slot]:
        """The shapes that a coarse layer of so many layers can have."""
        if self.coarse_params is not all_layers:
            return [slot]
        exact = jax.ShapeDtypeStruct((), bool) if self.exact_first else None
        # Whether a level's slots have a mask depends on its partition, which is not known yet: both are traced.
        kept = [Kept(None, exact), Kept(jax.ShapeDtypeStruct((stride,), bool), exact)]
        theta, h = _several((slot.theta, slot.h), stride)
        return [Slot(theta, h, kept=one) for one in kept]


def _several(one: PyTree, count: int) -> PyTree:
    """Shapes with a further leading axis."""
    return jax.eval_shape(lambda tree: repeat(tree, count), one)


DEFAULT = MGRIT()

# To the dtype's rounding, whatever the network.
CONVERGED = MGRIT(cycles=50, rtol=0.0, sequential_fallback=True)
