"""The control of inexactness in a training: `jaxmgrit.analysis.control` by the config, its decisions in words."""

from typing import Any

from experiments.config.schema import Config
from experiments.training.build import climbs_by_sweeps, ladder
from jaxmgrit.analysis.control import Control, ControlState, Measured, decide, is_due

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
        return len(self.cycles) > 1 and is_due(self._control, state, iteration)

    def decide(self, state: ControlState, iteration: int, measured: Measured) -> tuple[dict[str, Any], ControlState]:
        """What is decided, as an event, and what to remember."""
        after, reason = decide(self._control, state, iteration, measured, self.cycles)
        top = len(self.cycles) - 1
        if self._by_sweeps and after.rung == top > state.rung + 1:
            after = after._replace(rung=top - 1)  # the layers' law promises much of one sweep more: that is tried first
        action = KEPT if after.rung == state.rung else f"{self.name(state.rung)} -> {self.name(after.rung)}"
        return {"iteration": iteration, "action": action, "reason": reason, **measured._asdict()}, after
