"""The control of inexactness in a training: `jaxmgrit.analysis.control` by the config, its decisions in words."""

from collections.abc import Iterator
from typing import Any

from experiments.config.ladder import climbs_by_sweeps, ladder, most_swept, sweeps_and_cycles
from experiments.config.schema import Config
from experiments.training.records import Row
from experiments.training.session import Session
from jaxmgrit.analysis.control import (
    EXACT,
    SETTLED,
    Control,
    ControlState,
    Measured,
    confirm,
    decide,
    follow,
    is_due,
    observe,
)

KEPT = "keep"  # the action of a decision that changes nothing


class Controller:
    """Decides which rung of `experiments.config.ladder` to use; inactive where there is but one.

    Attributes:
        cycles: Of each rung, see `experiments.config.ladder`; None: sequential.
    """

    def __init__(self, config: Config) -> None:
        section = config.control
        self.cycles = ladder(config)
        self._control = Control(section.tolerance, section.min_cosine, section.soon, section.longest)
        self._by_sweeps = climbs_by_sweeps(config)
        self._most_swept = most_swept(self.cycles) if self._by_sweeps else None
        self._predicts = config.training.schedule == "predict_then_sweep"
        self._once = 1 if self._predicts else config.solver.cycles

    def name(self, rung: int) -> str:
        """A rung in words."""
        cycles = self.cycles[rung]
        if cycles is None:
            return "sequential sweeps"
        if self._by_sweeps:
            sweeps, more = sweeps_and_cycles(self.cycles, rung)
            return f"picard({sweeps})" if more == 1 else f"{more * self._once} cycles with picard({sweeps})"
        return "predict, then sweep" if rung == 0 and self._predicts else f"{cycles} cycle{'s' if cycles > 1 else ''}"

    def is_due(self, state: ControlState, iteration: int) -> bool:
        """Whether to compare before an iteration."""
        if len(self.cycles) == 1:
            return False
        if not self._by_sweeps:
            return is_due(self._control, state, iteration)
        settling = self.cycles[state.rung] is not None and state.origin != len(self.cycles) - 1
        return iteration >= state.check and not (settling and iteration - state.since < SETTLED)

    def observe(self, state: ControlState, row: Row) -> ControlState:
        """Take note of what an iteration tells."""
        if not self._by_sweeps:
            return observe(state, row["objective"])
        return observe(state, row["objective"], row["mismatch"], row["grad_norm"])

    def follow(self, state: ControlState, iteration: int) -> tuple[Row | None, ControlState]:
        """A change by the mismatch alone, as an event, and what to remember; None where nothing changes."""
        if len(self.cycles) == 1 or not self._by_sweeps:
            return None, state
        after, reason = follow(self._control, state, iteration, len(self.cycles) - 1, self._most_swept)
        event = {"iteration": iteration, "action": self._action(state, after), "reason": reason} if reason else None
        return event, after

    def decide(self, state: ControlState, iteration: int, measured: Measured) -> tuple[dict[str, Any], ControlState]:
        """What is decided, as an event, and what to remember."""
        if self._by_sweeps:
            after, reason = confirm(self._control, state, iteration, measured, self.cycles, self._most_swept)
        else:
            after, reason = decide(self._control, state, iteration, measured, self.cycles)
        if self._by_sweeps and self.cycles[after.rung] is None and after.rung != state.rung:
            factors = f"{measured.factor:.2g} (state) and {measured.adjoint_factor:.2g} (adjoint)"
            reason += f"; a cycle with {self.name(state.rung)} leaves {factors} of a residual"
        return {
            "iteration": iteration,
            "action": self._action(state, after),
            "reason": reason,
            **measured._asdict(),
        }, after

    def watch(self, session: Session, iteration: int) -> Iterator[Row]:
        """Compare the gradient with the exact one where that is due, and change the solver where it must be.

        Args:
            session: The training.
            iteration: The one about to be done.

        Yields:
            What is decided, as events.
        """
        change, session.course.control = self.follow(session.course.control, iteration)
        if change:
            session.change(session.course)
            yield change
        while self.is_due(session.course.control, iteration):
            measured = session.measure(iteration, self.cycles[session.course.control.rung])
            event, session.course.control = self.decide(session.course.control, iteration, measured)
            if event["action"] != KEPT:
                session.change(session.course)
            if event["action"] != KEPT or measured != EXACT:
                yield event

    def _action(self, before: ControlState, after: ControlState) -> str:
        return KEPT if after.rung == before.rung else f"{self.name(before.rung)} -> {self.name(after.rung)}"
