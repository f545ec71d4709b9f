"""`advise`: which solver suits a network, measured on the user's own arrays."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmgrit._checks import check_backend, check_finite, check_layers, check_scalar, check_state, is_real
from jaxmgrit.analysis.candidates import Row, candidates, roughness
from jaxmgrit.analysis.report import Report, table
from jaxmgrit.analysis.subject import Clock, Subject, stopped
from jaxmgrit.analysis.trials import Trials
from jaxmgrit.backend.local import LOCAL
from jaxmgrit.solvers.sequential import SEQUENTIAL
from jaxmgrit.system.network import make_network
from jaxmgrit.training.schedules.cycles_then_gradient import CyclesThenGradient
from jaxmgrit.training.schedules.predict_then_sweep import PredictThenSweep

if TYPE_CHECKING:
    from jaxmgrit._pytree import PyTree
    from jaxmgrit._types import Layers, State, StepSize
    from jaxmgrit.backend.base import Backend
    from jaxmgrit.solvers.base import Solver
    from jaxmgrit.training.schedules.base import Schedule

# What a candidate must gain over the sequential program, which is exact and simpler.
WORTH = 0.95

# Candidates that take so many times as long as the best are timed again, in turns, so many times.
CLOSE, ROUNDS = 1.3, 7


@dataclass(frozen=True)
class Advice:
    """What `advise` recommends, and why; `print` shows the table and the sentences.

    Attributes:
        solver: for the state, ready for `propagate(solver=...)` and `OneShot(solver=...)`.
        adjoint: for the adjoint, likewise.
        schedule: for `OneShot(schedule=...)`: state cycles, adjoint cycles, gradient, as they were measured; or
            predict, then sweep, where layers are smooth in depth and the solvers have a coarse problem.
        table: what was measured and modelled, one `Row` per candidate, the sequential program first. A row has name,
            solver and adjoint (None where it was dropped), error (of its gradient, relative), state_factor and
            adjoint_factor (by which a cycle reduces the residuals), seconds (by number of devices) and reason (why it
            was dropped).
        sentences: what it means.

    Example:
        >>> import jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> advice = jm.advise(step, jnp.ones((4, 2, 2)), jnp.ones((3, 2)), h=0.1, devices=(1,), seconds=1)
        >>> advice.table[0].name, type(advice.solver).__name__
        ('sequential', 'Sequential')
    """

    solver: Solver
    adjoint: Solver
    schedule: Schedule
    table: tuple[Row, ...]
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([table(self.table), "", *self.sentences])


def advise(
    step: Callable[..., PyTree],
    theta: Layers,
    u0: State,
    *,
    h: StepSize,
    loss: Callable[[PyTree], jax.Array] | None = None,
    devices: Sequence[int] = (1, 2, 4, 8),
    tolerance: float = 1e-2,
    seconds: float = 60.0,
    backend: Backend = LOCAL,
    latency: float = 2e-5,
    bandwidth: float = 1e10,
) -> Advice:
    """Measure which solver suits a network, on the user's own arrays, and say so.

    The gradient is computed by the sequential programs and by one candidate after another (Newton on intervals, Picard
    sweeps over all layers, averaged and injected layers, relaxation only). A candidate whose gradient misses the
    tolerance after 6 cycles from a cold start is dropped, however fast it is; one that does not is recommended if it is
    at least 5 % faster than the best sequential program on the backend's devices. For other numbers of devices, a
    device's share of the layers is measured, and the coarse recurrence and messages are added to it.

    Gradients are those with respect to theta, u0 and the floating-point arrays that the step closes over (shared
    weights). Call it outside `jit`, with parameters like those that will be trained: advice for a network at its
    initialisation may not hold for the trained one.

    Args:
        step: Phi(theta, u, h) -> u_next, as in `propagate`.
        theta: parameters, every leaf with leading axis N.
        u0: state, a pytree of floating-point arrays of the size that will be trained on.
        h: step size, a scalar or one per layer, shape (N,).
        loss: (u^N) -> scalar whose gradient is compared; None: the mean square.
        devices: numbers of devices to give times for, each >= 1.
        tolerance: relative error of the gradient that is borne, > 0.
        seconds: how long measuring may take, compilation included, > 0. Programs are begun only while one like those
            before would end in time; one sequential program is always measured.
        backend: where the layers will live: programs are measured on it and the recommendation is for it. With several
            processes all call `advise` alike, and the first one decides.
        latency: seconds that a message between devices takes.
        bandwidth: bytes per second, likewise.

    Returns:
        An `Advice`; print it.

    Raises:
        TypeError, ValueError: arguments that do not fit together, are traced, or out of range.

    Example:
        >>> import jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> theta, u0 = 0.1 * jnp.ones((16, 4, 4)), jnp.ones((2, 4))
        >>> advice = jm.advise(step, theta, u0, h=1 / 16, seconds=1)
        >>> u = jm.propagate(step, theta, u0, h=1 / 16, solver=advice.solver, adjoint=advice.adjoint)
    """
    counts, loss = _checked(
        devices, backend, loss, tolerance=tolerance, seconds=seconds, latency=latency, bandwidth=bandwidth
    )
    clock = Clock(seconds, backend)
    subject = _subject(step, theta, u0, h, loss, backend)
    trials = Trials(subject, clock, tolerance, counts, latency, bandwidth)
    rows, tries = [trials.sequentially()], list(candidates(subject.layers, u0, backend.size))
    if tries and trials.has_time():
        trials.measure_layer(math.isqrt(subject.layers))
    rows += [trials.of(candidate) for candidate in tries]
    rows = trials.refine(_timed_again(trials, rows))
    size = backend.size
    usable = [i for i, row in enumerate(rows) if row.solver is not None and row.error <= tolerance]
    best = min(usable, key=lambda i: rows[i].seconds[size])
    if rows[best].seconds[size] > WORTH * rows[0].seconds[size]:
        best = 0
    best = int(backend.agreed(best))
    report = Report(rows, best, subject.layers, trials.layer, roughness(theta), size, tolerance, latency, bandwidth)
    solver, adjoint = rows[best].solver, rows[best].adjoint
    assert solver is not None and adjoint is not None
    schedule = PredictThenSweep() if report.predicts else CyclesThenGradient()
    return Advice(solver, adjoint, schedule, tuple(rows), report.sentences())


def _checked(
    devices: Sequence[int], backend: Backend, loss: Callable[[PyTree], jax.Array] | None, **numbers_: float
) -> tuple[list[int], Callable[[PyTree], jax.Array]]:
    """The numbers of devices, the backend's among them, and the loss.

    Raises:
        TypeError, ValueError: an option is out of range; the message names it.
    """
    check_backend(backend)
    for name, value in numbers_.items():
        if not is_real(value) or not math.isfinite(value) or value <= 0:
            raise ValueError(f"advise: {name}={value!r} is not a finite number > 0.")
    if isinstance(devices, numbers.Integral):
        raise TypeError(
            f"advise: devices={devices!r} is not a sequence; give numbers of devices, such as (1, 2, 4, 8)."
        )
    wrong = [p for p in devices if isinstance(p, bool) or not isinstance(p, numbers.Integral) or p < 1]
    if wrong or not len(devices):
        raise ValueError(f"advise: devices={devices!r}: give numbers of devices >= 1, such as (1, 2, 4, 8).")
    if loss is not None and not callable(loss):
        raise TypeError(f"advise: loss={loss!r} is not a function; give loss(u_final) -> scalar, or None.")
    return sorted({backend.size, *map(int, devices)}), loss or _mean_square


def _subject(
    step: Callable[..., PyTree], theta: Layers, u0: State, h: StepSize, loss: Callable[..., Any], backend: Backend
) -> Subject:
    """The network, checked.

    Raises:
        TypeError, ValueError: what does not fit together.
    """
    layers, u0 = check_layers(theta), check_state(u0)
    for name, tree in (("theta", theta), ("u0", u0), ("h", h)):
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree)):
            raise TypeError(f"advise: {name} is traced; call advise outside jit, grad and vmap: it measures time.")
        check_finite(tree, name)
    subject = Subject(step, theta, u0, h, loss, layers, backend)
    # For its checks alone, before anything is compiled.
    make_network(step, theta, subject.part(), h, SEQUENTIAL)
    check_scalar(jax.eval_shape(loss, u0), "loss")
    return subject.opened()


def _timed_again(trials: Trials, rows: list[Row]) -> list[Row]:
    """Those that are close to the fastest timed again in turns: what the machine's moods do to one, they do to all."""
    size = trials.subject.backend.size
    usable = [row for row in rows if row.solver is not None]
    limit = CLOSE * min(row.seconds[size] for row in usable)
    # The sequential program in any case: gains are measured against it.
    close = [row for row in usable if row.seconds[size] <= limit or row is rows[0]]
    if len(close) < 2 or not trials.clock.has(ROUNDS * sum(row.seconds[size] for row in close)):
        return rows
    samples = [[stopped(trials.calls[row.name]) for row in close] for _ in range(ROUNDS)]
    least = [float(trials.subject.backend.agreed(min(x))) for x in zip(*samples, strict=True)]
    again = {row.name: time / row.seconds[size] for row, time in zip(close, least, strict=True)}

    def rescaled(row: Row) -> Row:
        # Modelled times are made from the measured one, so they change with it.
        return row._replace(seconds={p: again.get(row.name, 1.0) * x for p, x in row.seconds.items()})

    return [rescaled(row) for row in rows]


def _mean_square(u: PyTree) -> jax.Array:
    parts = [jnp.mean(jnp.abs(x) ** 2) for x in jax.tree.leaves(u)]
    return sum(parts[1:], parts[0])
