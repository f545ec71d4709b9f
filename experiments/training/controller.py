"""The control of inexactness in a training: `jaxmgrit.analysis.control` by the config, its decisions in words."""

from typing import Any

from experiments.config.schema import Config
from experiments.training.build import climbs_by_sweeps, ladder
from experiments.training.records import Row
from jaxmgrit.analysis.control import SETTLED, Control, ControlState, Measured, confirm, decide, follow, is_due, observe

KEPT = "keep"  # the action of a decision that changes nothing


class Controller:
    """Decides which rung of `build.ladder` to use; inactive where there is but one.

    Attributes:
        cycles: Of each rung, see `build.ladder`; None: sequential.
    """

    def __init__(self, config: Config) -> None:
        section = config.control
        self.cycles = ladder(config)
        self._control = Control(section.tolerance, section.min_cosine, section.soon, section.longest)
        self._by_sweeps = climbs_by_sweeps(config)
        self._predicts = config.training.schedule == "predict_then_sweep"

    def name(self, rung: int) -> str:
        """A rung in words."""
        cycles = self.cycles[rung]
        if cycles is None:
            return "sequential sweeps"
        if self._by_sweeps:
            return f"picard({cycles - 1})"
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
        after, reason = follow(self._control, state, iteration, len(self.cycles) - 1)
        event = {"iteration": iteration, "action": self._action(state, after), "reason": reason} if reason else None
        return event, after

    def decide(self, state: ControlState, iteration: int, measured: Measured) -> tuple[dict[str, Any], ControlState]:
        """What is decided, as an event, and what to remember."""
        judge = confirm if self._by_sweeps else decide
        after, reason = judge(self._control, state, iteration, measured, self.cycles)
        if self._by_sweeps and self.cycles[after.rung] is None and after.rung != state.rung:
            factors = f"{measured.factor:.2g} (state) and {measured.adjoint_factor:.2g} (adjoint)"
            reason += f"; a cycle with {self.name(state.rung)} leaves {factors} of a residual"
        return {
            "iteration": iteration,
            "action": self._action(state, after),
            "reason": reason,
            **measured._asdict(),
        }, after

    def _action(self, before: ControlState, after: ControlState) -> str:
        return KEPT if after.rung == before.rung else f"{self.name(before.rung)} -> {self.name(after.rung)}"
