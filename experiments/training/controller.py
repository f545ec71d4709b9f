"""The control of inexactness in a training: `jaxmgrit.analysis.control` by the config, its decisions in words."""

from typing import Any

from experiments.config.schema import Config
from experiments.training.build import ladder
from jaxmgrit.analysis.control import Control, ControlState, Measured, decide, is_due

KEPT = "keep"  # the action of a decision that changes nothing


class Controller:
    """Decides which rung of `build.ladder` to use; inactive where there is but one.

    Attributes:
        cycles: Of each rung; None: sequential.
    """

    def __init__(self, config: Config) -> None:
        section = config.control
        self.cycles = ladder(config)
        self._control = Control(section.tolerance, section.min_cosine, section.soon, section.longest)
        self._predicts = config.training.schedule == "predict_then_sweep"

    def name(self, rung: int) -> str:
        """A rung in words."""
        cycles = self.cycles[rung]
        if cycles is None:
            return "sequential sweeps"
        return "predict, then sweep" if rung == 0 and self._predicts else f"{cycles} cycle{'s' if cycles > 1 else ''}"

    def is_due(self, state: ControlState, iteration: int) -> bool:
        """Whether to compare before an iteration."""
        return len(self.cycles) > 1 and is_due(self._control, state, iteration)

    def decide(self, state: ControlState, iteration: int, measured: Measured) -> tuple[dict[str, Any], ControlState]:
        """What is decided, as an event, and what to remember."""
        after, reason = decide(self._control, state, iteration, measured, self.cycles)
        action = KEPT if after.rung == state.rung else f"{self.name(state.rung)} -> {self.name(after.rung)}"
        return {"iteration": iteration, "action": action, "reason": reason, **measured._asdict()}, after
