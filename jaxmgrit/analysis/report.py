"""What measured candidates mean: a table, and sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxmgrit.analysis.candidates import MISSES, NO_TIME, Layer, Row
from jaxmgrit.solvers.mgrit.coarse import zero_step
from jaxmgrit.solvers.mgrit.solver import MGRIT

# Of the layers' size: smaller differences are those of a function of depth, larger ones those of independent layers.
SMOOTH, ROUGH = 0.2, 0.7


@dataclass(frozen=True)
class Report:
    """All that is known about a network.

    Attributes:
        rows: the sequential program first.
        chosen: index of the row that is recommended.
        layers: N.
        layer: seconds of one layer.
        roughness: of the layers, see `roughness`; None where nothing is floating point.
        devices: of the backend, for which the recommendation is.
        tolerance: of the gradient.
        latency: seconds per message in modelled times.
        bandwidth: bytes per second.
    """

    rows: Sequence[Row]
    chosen: int
    layers: int
    layer: Layer
    roughness: float | None
    devices: int
    tolerance: float
    latency: float
    bandwidth: float

    @property
    def predicts(self) -> bool:
        """Whether one-shot training is to predict, then sweep: smooth layers, and a choice with a coarse problem."""
        solver = self.rows[self.chosen].solver
        smooth = self.roughness is not None and self.roughness < SMOOTH
        # Of more cycles than two that schedule would make nothing.
        return smooth and isinstance(solver, MGRIT) and solver.coarse_step is not zero_step and solver.cycles <= 2

    def sentences(self) -> tuple[str, ...]:
        """What it means, in sentences a user understands."""
        return tuple(filter(None, self._sentences()))

    def _sentences(self) -> Iterator[str]:
        yield self._cost()
        yield self._depth()
        yield self._contractions()
        relaxed = self._row("relaxation only")
        if relaxed is not None and relaxed.error <= self.tolerance:
            yield "The network forgets within an interval: relaxation alone gives the gradient."
        yield self._choice()
        if self.predicts:
            yield (
                "For one-shot training the schedule is to predict, then sweep: the coarse problem predicts state and "
                "adjoint at new parameters, and an iteration takes one sweep. Its gradients were not measured here."
            )
        yield self._break_even()
        if names := [row.name for row in self.rows if row.reason.startswith(MISSES)]:
            yield f"Dropped, since their gradients are off by more than {self.tolerance:g}: {'; '.join(names)}."
        if names := [row.name for row in self.rows if row.reason == NO_TIME]:
            yield f"Not measured, or not to the end, for want of time (give more seconds): {'; '.join(names)}."
        if any(len(row.seconds) > 1 for row in self.rows[1:]):
            yield (
                f"Times on other numbers of devices are modelled, with messages of {1e6 * self.latency:g} us and "
                f"{self.bandwidth / 1e9:g} GB/s."
            )

    def _row(self, name: str) -> Row | None:
        # Names end with interval and cycles: see `Candidate.__str__`.
        return next((row for row in self.rows if row.name.partition(", m =")[0] == name), None)

    def _cost(self) -> str:
        if math.isnan(self.layer.phi):
            return ""
        text = f"A layer takes {_time(self.layer.phi)} forwards and {_time(self.layer.vjp)} backwards"
        if math.isnan(self.layer.wide):
            return f"{text}."
        return f"{text}; {self.layer.width} layers at once take {self.layer.wide:.2g} times as long as one."

    def _depth(self) -> str:
        if self.roughness is None:
            return ""
        differ = f"neighbours differ by {self.roughness:.2g} of their size"
        if self.roughness < SMOOTH:
            return f"Layers are smooth in depth ({differ})."
        if self.roughness > ROUGH:
            return f"Layers are rough in depth ({differ})."
        return f"Layers are neither smooth nor rough in depth ({differ})."

    def _contractions(self) -> str:
        parts = []
        for name, subject in (
            ("average", "averaged layers"),
            ("injection", "injected layers"),
            ("average, midpoint", "averaged layers with midpoint steps"),
            ("picard(2)", "two Picard sweeps"),
        ):
            row = self._row(name)
            if row is None or math.isnan(factor := max(row.state_factor, row.adjoint_factor)):
                continue
            parts.append(f"{subject} {'diverge' if factor >= 1 else f'contract by {factor:.2g}'}")
        text = ", ".join(parts)
        return f"Per cycle, {text}." if text else ""

    def _choice(self) -> str:
        pick, plain = self.rows[self.chosen], self.rows[0]
        where = "one device" if self.devices == 1 else f"{self.devices} devices"
        if self.chosen:
            ratio = plain.seconds[self.devices] / pick.seconds[self.devices]
            return (
                f"On {where} take {pick.name}: {ratio:.2g} times as fast as the best sequential program, its gradient "
                f"off by {pick.error:.2g}."
            )
        times = {row.name: row.seconds[self.devices] for row in self.rows[1:] if self.devices in row.seconds}
        usable = [row.name for row in self.rows[1:] if row.solver is not None and row.name in times]
        if usable:
            name = min(usable, key=lambda name: times[name])
            ratio = times[name] / plain.seconds[self.devices]
            why = f"the best of the others, {name}, takes {ratio:.2g} times as long"
        elif all(row.reason == NO_TIME for row in self.rows[1:]):
            why = "nothing else was measured" if len(self.rows) > 1 else "there are too few layers for anything else"
        else:
            why = "no other gradient is both within the tolerance and as fast"
        return f"Sequential is the best choice on {where} because {why}."

    def _break_even(self) -> str:
        """From how many devices on something else is faster than sequential."""
        plain = self.rows[0].seconds
        more = sorted(count for count in plain if count > self.devices)
        for count in more:
            # The 5 % that `advise` asks of a candidate.
            faster = [
                row for row in self.rows[1:] if row.solver and row.seconds.get(count, math.inf) < 0.95 * plain[count]
            ]
            if faster:
                best = min(faster, key=lambda row: row.seconds[count])
                ratio = plain[count] / best.seconds[count]
                return f"From {count} devices on {best.name} is {ratio:.2g} times as fast as sequential (modelled)."
        modelled = any(count in row.seconds for row in self.rows[1:] for count in more)
        what = "nothing that was measured" if any(row.reason == NO_TIME for row in self.rows) else "nothing"
        return f"Up to {max(more)} devices {what} is faster than sequential (modelled)." if modelled else ""


def table(rows: Sequence[Row]) -> str:
    """The rows as text: milliseconds by number of devices, contraction, gradient error."""
    devices = sorted({count for row in rows for count in row.seconds})
    width = max(len(row.name) for row in rows)
    head = f"{'ms per gradient':{width}} " + " ".join(f"{f'P = {p}':>8}" for p in devices)
    lines = [f"{head} {'state':>8} {'adjoint':>8} {'gradient':>9}"]
    for row in rows:
        times = " ".join(f"{_number(1e3 * row.seconds.get(p, math.nan)):>8}" for p in devices)
        factors = f"{_number(row.state_factor):>8} {_number(row.adjoint_factor):>8} {_number(row.error):>9}"
        lines.append(f"{row.name:{width}} {times} {factors}   {row.reason}".rstrip())
    return "\n".join(lines)


def _number(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.2g}" if x < 100 else f"{x:.0f}" if x < 1e6 else f"{x:.1e}"


def _time(seconds: float) -> str:
    return f"{_number(1e3 * seconds)} ms" if seconds >= 1e-3 else f"{_number(1e6 * seconds)} us"
