"""What a program does, counted from its trace: evaluations of Phi and of its vjp, and messages, per level and device.

The library's own programs (`solve`, `adjoint_solve`, a schedule's iteration) are traced, without a device and without
arrays, with a step that leaves a mark and on a backend that marks messages; the walk over the trace multiplies marks by
the passes of the loops around them. So whatever a solver or schedule does is counted, also one of your own that
subclasses `Solver` or follows `Schedule`; the tests compare the counts with what is counted while programs run.

All devices do the same, so a figure is that of one device; a level that several devices solve each for itself counts on
each of them, and padding counts like layers. Of a `while_loop` the most passes it can make are counted (`solver.cycles`
or `iterations`, where the solver has them, and never the sequential fallback), of a branch that the walk cannot tell
the one that does more. That a pullback of large states evaluates Phi once more, rather than keep what it needs, counts
as part of the pullback. A tangent that Newton pushes through a layer counts as a pullback to the state, as many as a
sample of the state has components; so it is counted from `Shapes` alone. A coarse step counts as one evaluation,
whatever it is made of.

Messages and bytes of one cycle, for states of S bytes, on P > 1 devices. Level l is *spread* if its intervals are cut
into parts (`Level.devices` > 1) of s_l intervals, each the part of one device or of some neighbours; the finest is, the
coarsest never is:

- every relaxation sweep of a spread level sends one state (S bytes) to the neighbour, and so do, below the finest
  level, the F-points on the way up: 1 + nu_0 sends on the finest level, 2 + nu on level l >= 1 of a V-cycle, and
  (l + 1)(1 + nu) + l of an F-cycle, which relaxes there l + 1 times;
- where level l + 1 has fewer parts than level l, each device's part is gathered, s_l S bytes of the right-hand side
  and, if level l + 1 is not the coarsest, as many of the C-points: once in a V-cycle and l + 1 times in an F-cycle;
- residual norm, norm of the values and votes on having converged are gathered in one message of three numbers, and
  with a data axis in another from the parts of the batch.

To these a program adds, once: coarse parameters and linearisation points gathered where a level has fewer parts, the
value at the end given to all devices, and for the adjoint what moves the padding from one end to the other.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

from jaxmgrit.analysis.counts import NOTHING, Costs, Counts, Sizes, total
from jaxmgrit.analysis.traced import Case, Shapes, counts, iteration, solve_alone, then_adjoint
from jaxmgrit.solvers.mgrit.coarse import Picard, all_layers
from jaxmgrit.solvers.newton.solver import Newton
from jaxmgrit.solvers.sequential import match_segments

if TYPE_CHECKING:
    from jaxmgrit.solvers.base import Solver
    from jaxmgrit.solvers.mgrit.solver import MGRIT
    from jaxmgrit.training.schedules.base import Schedule

__all__ = [
    "Costs",
    "Counts",
    "Shapes",
    "Sizes",
    "adjoint_counts",
    "cycle_counts",
    "cyclic_counts",
    "iteration_counts",
    "solve_counts",
    "total",
]


def solve_counts(
    layers: int, solver: Solver, devices: int = 1, sizes: Sizes | Shapes = NOTHING, *, data: int = 1
) -> tuple[Counts, ...]:
    """Counts of `solve`, finest level first; with a tolerance, of all `solver.cycles` cycles.

    Args:
        layers: N.
        solver: any solver.
        devices: P, over which the layers are spread; none of them is needed.
        sizes: bytes of states, parameters and numbers, of which bytes sent are made up (rounded up to whole numbers);
            or `Shapes`.
        data: into how many parts the batch is split; `sizes` are then those of one part.

    Returns:
        What one device does on each level.

    Raises:
        ValueError: more devices than intervals, or a solver that cannot take the network.

    Example:
        >>> import jaxmgrit as jm
        >>> [level.all_phi for level in jm.cost_model.solve_counts(64, jm.MGRIT(4, levels=2, cycles=2))]
        [128, 64]
    """
    return counts(Case(layers, devices, sizes, data), solve_alone, solver, solver)[0]


def adjoint_counts(
    layers: int,
    solver: Solver,
    adjoint: Solver,
    devices: int = 1,
    sizes: Sizes | Shapes = NOTHING,
    *,
    gradients: bool = False,
    data: int = 1,
) -> tuple[Counts, ...]:
    """Counts of `adjoint_solve` of a state solved by `solver`, and on request of the layers' gradients with it.

    Args:
        layers: N.
        solver: of the state, whose own solve is not counted.
        adjoint: of the adjoint.
        devices: as in `solve_counts`.
        sizes: as in `solve_counts`.
        gradients: whether to count the gradients' sweep too.
        data: as in `solve_counts`.

    Example:
        >>> import jaxmgrit as jm
        >>> solver = jm.MGRIT(4, levels=2, cycles=1)
        >>> jm.cost_model.adjoint_counts(64, solver, solver, gradients=True)[0].grad
        64
    """
    return counts(Case(layers, devices, sizes, data), then_adjoint(gradients), solver, adjoint)[1]


def iteration_counts(
    schedule: Schedule,
    layers: int,
    solver: Solver,
    adjoint: Solver,
    devices: int = 1,
    sizes: Sizes | Shapes = NOTHING,
    *,
    data: int = 1,
) -> tuple[tuple[Counts, ...], tuple[Counts, ...]]:
    """Counts of the two parts of an iteration, up to the loss and from there on; no optimiser's.

    With `CyclesThenGradient` also those of `jax.grad` through `propagate`.

    Args:
        schedule: any schedule.
        layers: N.
        solver: of the state.
        adjoint: of the adjoint.
        devices: as in `solve_counts`.
        sizes: as in `solve_counts`.
        data: as in `solve_counts`.

    Returns:
        The state's, and those of adjoint and gradient.

    Raises:
        ValueError: solvers that the schedule cannot honour, more devices than intervals.

    Example:
        >>> import jaxmgrit as jm
        >>> solver = jm.MGRIT(8, levels=2)
        >>> predict, sweep = jm.cost_model.iteration_counts(jm.PredictThenSweep(), 64, solver, solver)
        >>> predict[1].serial_phi, sweep[0].grad
        (8, 64)
    """
    # As trainers do, so that their programs are what is counted.
    solver, adjoint = match_segments(solver, adjoint)

    return counts(Case(layers, devices, sizes, data), iteration(schedule), solver, adjoint)


def cycle_counts(
    layers: int,
    solver: Solver,
    devices: int = 1,
    sizes: Sizes | Shapes = NOTHING,
    *,
    adjoint: bool = False,
    data: int = 1,
) -> tuple[Counts, ...]:
    """Counts of one cycle more, residual norm included.

    Args:
        layers: N.
        solver: one that has `cycles` or `iterations`, such as `MGRIT` and `Newton`.
        devices: as in `solve_counts`.
        sizes: as in `solve_counts`.
        adjoint: whether the cycle is the adjoint's.
        data: as in `solve_counts`.

    Example:
        >>> import jaxmgrit as jm
        >>> [level.all_phi for level in jm.cost_model.cycle_counts(64, jm.MGRIT(4, levels=2))]
        [64, 32]
    """
    case = Case(layers, devices, sizes, data)
    # Not one and two: the first cycle may be another (`skip_first_down`).
    field = "iterations" if isinstance(solver, Newton) else "cycles"
    two, three = (replace(solver, **{field: count}) for count in (2, 3))  # type: ignore[type-var]
    if adjoint:
        fewer, more = (counts(case, then_adjoint(False), solver, one)[1] for one in (two, three))
    else:
        fewer, more = (counts(case, solve_alone, one, solver)[0] for one in (two, three))
    return tuple(
        Counts(**{f.name: getattr(b, f.name) - getattr(a, f.name) for f in fields(Counts)})
        for a, b in zip(fewer, more, strict=True)
    )


def cyclic_counts(
    layers: int, solver: MGRIT, devices: int, sizes: Sizes = NOTHING
) -> tuple[tuple[Counts, ...], tuple[Counts, ...]]:
    """Counts of an iteration that predicts, then sweeps, if layers were dealt out to the devices in turn: a thought.

    The library gives each device neighbouring intervals, so that the coarse problem, all p N layers of it, is no
    shorter on many devices. With layer i of *every* interval on device i (m/P neighbouring ones where m > P) a Picard
    sweep is m/P layers on every device and a sum over the devices, and the sweep over the intervals is a pipeline whose
    micro-batches are the K = N/m intervals: K + P - 1 stages of m/P layers and a message. Nothing runs like this; it
    is counted by formula, to see what it would bring.

    Args:
        layers: N.
        solver: two levels with `all_layers` and `picard(p)`, of state and adjoint.
        devices: P, at most m.
        sizes: bytes of states.

    Returns:
        As of `iteration_counts`; a step of the coarse level is p sweeps over m/P layers, at once.

    Raises:
        ValueError: another solver, or more devices than an interval has layers.

    Example:
        >>> import jaxmgrit as jm
        >>> solver = jm.MGRIT(32, levels=2, coarse_params=jm.all_layers, coarse_step=jm.picard(2))
        >>> predict, sweep = jm.cost_model.cyclic_counts(1024, solver, 32)
        >>> predict[1].serial_phi, sweep[0].serial_grad
        (32, 63)
    """
    coarse = solver.coarse_step
    if not isinstance(coarse, Picard) or solver.coarse_params is not all_layers:
        raise ValueError(f"cyclic_counts: solver={solver} has no Picard sweeps over all layers; see jm.picard.")
    levels = solver.hierarchy(layers, 1)
    if len(levels) != 2:
        raise ValueError(f"cyclic_counts: expected two levels, not {len(levels)}.")
    m = levels[1].stride
    if not 1 <= devices <= m:
        raise ValueError(f"cyclic_counts: devices={devices}: expected 1 to {m}, the layers of an interval.")
    share, intervals = -(-m // devices), -(-layers // m)
    stages = intervals + devices - 1
    sums, sends = (coarse.sweeps * intervals, stages) if devices > 1 else (0, 0)
    predicted = Counts(serial_phi=intervals, sums=sums, bytes=sums * sizes.state)
    back = replace(predicted, serial_vjp=0 if coarse.inner_values else intervals)
    fine = stages * share
    swept = Counts(serial_phi=fine, serial_grad=fine, sends=2 * sends, bytes=2 * sends * sizes.state)
    return (Counts(), predicted), (swept, back)
