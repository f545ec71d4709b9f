"""Candidates tried on a network: how many cycles the tolerance takes, their time, and what more devices make of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax

from jaxmgrit._pytree import PyTree, fold, merge, size_in_bytes, split
from jaxmgrit.analysis.candidates import MISSES, NO_TIME, SLOW, Candidate, Layer, Row, components
from jaxmgrit.analysis.cost_model import Shapes, Sizes, iteration_counts, total
from jaxmgrit.solvers.mgrit.coarse import Picard, midpoint, zero_step
from jaxmgrit.solvers.mgrit.grids import sweep_batch
from jaxmgrit.solvers.newton.solver import Newton
from jaxmgrit.solvers.sequential import Sequential
from jaxmgrit.training.schedules.cycles_then_gradient import CyclesThenGradient

if TYPE_CHECKING:
    from jaxmgrit._types import Layers, State
    from jaxmgrit.analysis.subject import Clock, Seen, Subject
    from jaxmgrit.solvers.base import Solver

# Cycles beyond which no solver pays: its sweeps alone cost as many sequential runs.
MOST_CYCLES = 6

# A program is begun only where so many times as long is left as the ones before have taken at most.
MARGIN = 1.3

# A gradient's error below which it may be rounding.
ROUNDING = 1e-5


@dataclass
class Trials:
    """What all trials of one network share, and what is known so far.

    Attributes:
        subject: the network.
        clock: says when to stop.
        tolerance: relative error of the gradient that is borne.
        devices: numbers of devices to model.
        latency: seconds per message.
        bandwidth: bytes per second.
        exact: gradient of the sequential program.
        sequential: its seconds.
        layer: seconds of one layer.
        longest: seconds that trying one program has taken, the longest so far, a heavy one's in proportion.
        calls: of compiled programs, by row's name.
        candidates: that meet the tolerance, likewise.
    """

    subject: Subject
    clock: Clock
    tolerance: float
    devices: Sequence[int]
    latency: float
    bandwidth: float
    exact: PyTree = None
    sequential: float = math.inf
    layer: Layer = Layer(math.nan, math.nan)
    longest: float = 0.0
    calls: dict[str, Any] = field(default_factory=dict)
    candidates: dict[str, Candidate] = field(default_factory=dict)

    def has_time(self, solver: Solver | None = None) -> bool:
        """Whether one more program can be tried, with a solver that may take longer to compile than others."""
        return self.clock.has(MARGIN * self.longest * _weight(solver))

    def look(self, solver: Solver, adjoint: Solver, subject: Subject | None = None) -> Seen:
        """`Subject.look` at the network, or another one; remembers how long it took."""
        seen = (subject or self.subject).look(solver, adjoint)
        self.longest = max(self.longest, float(self.subject.backend.agreed(seen.cost)) / _weight(solver))
        return seen

    def sequentially(self) -> Row:
        """The fastest sequential program: nothing, every layer or segments computed again; the layer's cost with it."""
        subject = self.subject
        alone = subject.backend.size == subject.backend.data_size == 1
        best: Seen | None = None
        # The plain program, every layer a segment, about sqrt(N); of a short network some are the same.
        for segment in dict.fromkeys((subject.layers, 1, math.isqrt(subject.layers - 1) + 1) if alone else (None,)):
            if best is not None and not self.has_time():
                break
            solver = Sequential(segment)
            seen = self.look(solver, solver)
            if best is None or seen.seconds < self.sequential:
                best, self.sequential, chosen = seen, seen.seconds, solver
        assert best is not None
        self.exact, self.calls["sequential"] = best.gradient, best.call
        times = dict.fromkeys(self.devices, self.sequential)
        return Row("sequential", chosen, chosen, 0.0, 0.0, 0.0, times)

    def measure_layer(self, width: int) -> None:
        """One layer's evaluation and pullback, and a wide step."""
        subject = self.subject
        both = self.sequential / subject.layers
        forward = jax.jit(lambda theta, u0: subject.value(theta, u0))
        # Noise must not give the pullback a negative time.
        phi = min(both, self._seconds(forward, subject.theta, subject.u0) / subject.layers)
        self.layer = Layer(phi, both - phi)
        if width < 2 or not self.has_time():
            return
        count = subject.layers // width
        differentiable, others = split(subject.theta)

        def wide(theta: Layers, u0: State) -> jax.Array:
            def one(u: State, block: Layers) -> tuple[PyTree, None]:
                after = jax.vmap(lambda theta, u: subject.one(theta, u), in_axes=(0, 0))(block, u)
                return after, None

            blocks = fold(jax.tree.map(lambda x: x[: count * width], merge(theta, others)), width)
            start = jax.tree.map(lambda x: jax.numpy.broadcast_to(x, (width, *x.shape)), u0)
            u = jax.lax.scan(one, start, blocks)[0]
            return subject.loss(jax.tree.map(lambda x: x[0], u))

        # By both: layers without parameters of their own have none that the value depends on.
        program = jax.jit(jax.grad(wide, argnums=(0, 1)))
        seconds = self._seconds(program, differentiable, subject.u0) / count
        self.layer = Layer(phi, both - phi, seconds / both, width)

    def _seconds(self, program: Any, *args: PyTree) -> float:
        def call() -> PyTree:
            return jax.block_until_ready(program(*args))

        call()
        return self.subject.timed(call)

    def of(self, candidate: Candidate) -> Row:
        """Try a candidate: two cycles first, which tell how many it takes."""
        if not self.has_time(candidate.solver):
            return Row(candidate.name, None, None, reason=NO_TIME)
        try:
            row, seen, candidate = self._enough(candidate)
        except (TypeError, ValueError, NotImplementedError) as refusal:
            # A solver that cannot take the network is a row of the table, not an error.
            return Row(candidate.name, None, None, reason=str(refusal).strip().split("\n")[0])
        if row.reason:
            return row
        self.calls[row.name], self.candidates[row.name] = seen.call, candidate
        return row._replace(seconds=self._on_devices(candidate, seen.seconds))

    def _enough(self, candidate: Candidate) -> tuple[Row, Seen, Candidate]:
        """The candidate with as many cycles as the tolerance takes, or why there are none."""
        tried = candidate.times(2) if candidate.is_iterated else candidate
        seen = self.look(tried.solver, tried.adjoint)
        error = self.subject.distance(seen.gradient, self.exact)
        state, reverse = map(_factor, seen.norms)

        def row(error: float, reason: str = "") -> Row:
            own, other = (None, None) if reason else (tried.solver, tried.adjoint)
            times = {self.subject.backend.size: seen.seconds}
            return Row(str(tried), own, other, error, state, reverse, times, reason)

        count = _needed(candidate, error, (state, reverse), self.tolerance)
        if count is None or count == tried.cycles or not candidate.is_iterated:
            return row(error, "" if error <= self.tolerance else MISSES), seen, tried
        # State and adjoint sweep once per cycle, and once more for the gradient, which costs about as much as three.
        if seen.seconds * (3 + 3 * count) / 9 > 1.2 * self.sequential * max(self.devices):
            return row(error, f"{SLOW} ({count} cycles)"), seen, tried
        if not self.has_time(candidate.solver):
            return row(error, "" if error <= self.tolerance else NO_TIME), seen, tried
        other = candidate.times(count)
        again = self.look(other.solver, other.adjoint)
        off = self.subject.distance(again.gradient, self.exact)
        # One cycle may miss where two did not: then two are kept.
        if off <= self.tolerance or error > self.tolerance:
            tried, seen, error = other, again, off
        return row(error, "" if error <= self.tolerance else MISSES), seen, tried

    def _on_devices(self, candidate: Candidate, seconds: float) -> dict[int, float]:
        """Seconds by number of devices: measured on the backend's own, elsewhere its parallel part by the intervals."""
        size, intervals = self.subject.backend.size, self.subject.layers // candidate.factor
        # The serial part is modelled: of what was measured it may be most, never all.
        times, serial = {size: seconds}, min(0.8 * seconds, intervals * self._serial(candidate))
        for p in self.devices:
            if p != size and p <= intervals and not math.isnan(self.layer.phi):
                shrunk = self._sweep(candidate, -(-intervals // p)) / self._sweep(candidate, -(-intervals // size))
                extra = self._messages(candidate, p) - self._messages(candidate, size)
                times[p] = serial + (seconds - serial) * shrunk + extra
        return times

    def _sweep(self, candidate: Candidate, intervals: int) -> float:
        """Time of a sweep over so many intervals on one device, over that of one interval."""
        own = sweep_batch(candidate.adjoint, self.subject.u0, self.subject.backend.platform, intervals)
        each = 1 + components(self.subject.u0) if candidate.is_newton else 1  # with its tangents
        slope = 1.0 if math.isnan(self.layer.wide) else max(0.0, self.layer.wide - 1) / (self.layer.width - 1)
        return -(-intervals // own) * (1 + slope * (own * each - 1))

    def refine(self, rows: Sequence[Row]) -> list[Row]:
        """Measure the share of one device of the candidate that is the fastest for some number of devices."""
        refined, size = list(rows), self.subject.backend.size
        for p in (p for p in self.devices if p > size):
            # Also where the sequential program is faster still: whether it is, is what users ask.
            usable = [i for i, row in enumerate(refined) if row.name in self.candidates and p in row.seconds]
            i = min(usable, key=lambda i: refined[i].seconds[p], default=None)
            if i is None or not self.has_time((candidate := self.candidates[refined[i].name]).solver):
                continue
            intervals = self.subject.layers // candidate.factor
            few = size * -(-intervals // p)
            share = self.look(candidate.solver, candidate.adjoint, self.subject.first(few * candidate.factor))
            seconds = share.seconds + (intervals - few) * self._serial(candidate) + self._messages(candidate, p)
            refined[i] = refined[i]._replace(seconds={**refined[i].seconds, p: seconds})
        return refined

    def _serial(self, candidate: Candidate) -> float:
        """Seconds that an interval costs the devices it does not belong to."""
        phi, both = self.layer.phi, self.layer.phi + self.layer.vjp
        if isinstance(candidate.solver, Sequential):
            return candidate.factor * phi  # one device after another
        if candidate.is_newton:
            return 0.0
        step = candidate.solver.coarse_step
        evaluations = 2.0 if step is midpoint else 0.0 if step is zero_step else 1.0
        if isinstance(step, Picard):
            # NaN, where nothing was measured, does not equal itself.
            evaluations = step.sweeps * (self.layer.wide if self.layer.wide == self.layer.wide else candidate.factor)
        return candidate.cycles * evaluations * (phi + both)

    def _messages(self, candidate: Candidate, devices: int) -> float:
        """Seconds that messages take."""
        subject, solvers = self.subject, (candidate.solver, candidate.adjoint)
        return message_seconds(
            subject.theta, subject.u0, subject.layers, solvers, devices, self.latency, self.bandwidth
        )


def message_seconds(
    theta: Layers,
    u0: State,
    layers: int,
    solvers: tuple[Solver, Solver],
    devices: int,
    latency: float,
    bandwidth: float,
) -> float:
    """Seconds that the messages of a gradient take, by state and adjoint solvers on so many devices."""
    if devices == 1:
        return 0.0
    sizes: Sizes | Shapes
    if any(isinstance(solver, Newton) for solver in solvers):
        sizes = Shapes(jax.tree.map(lambda x: x[0], theta), u0)
    else:
        item = max(x.dtype.itemsize for x in jax.tree.leaves(u0))
        sizes = Sizes(size_in_bytes(u0), item, item)
    sums = [total(part) for part in iteration_counts(CyclesThenGradient(), layers, *solvers, devices, sizes)]
    return sum(x.messages * latency + x.bytes / bandwidth for x in sums)


def _weight(solver: Solver | None) -> float:
    """How long a solver's programs take to compile, over others: each of Picard's sweeps is evaluated by itself."""
    step = None if solver is None else solver.coarse_step
    return float(max(1, step.sweeps)) ** 1.5 if isinstance(step, Picard) else 1.0


def _factor(norms: list[float]) -> float:
    if len(norms) < 2:
        return math.nan
    return norms[1] / norms[0] if norms[0] > 0 else 0.0


def _needed(candidate: Candidate, error: float, factors: Sequence[float], tolerance: float) -> int | None:
    """How many cycles bring a gradient that is off by `error` after two within the tolerance; None: too many."""
    factor = max((x for x in factors if not math.isnan(x)), default=0.0)
    if not math.isfinite(error):
        return None
    # After one cycle: by the factor, unless two cycles have got down to where rounding hides it.
    hidden = candidate.is_newton or error < ROUNDING or factor == 0
    before = factor if hidden else error / factor
    if error <= tolerance:
        return 1 if before <= 0.7 * tolerance else 2
    if not 0 < factor < 1:
        return None
    # Short of the tolerance, since the factor was seen once.
    count = 2 + math.ceil(math.log(0.7 * tolerance / error) / math.log(factor))
    return count if count <= MOST_CYCLES else None
