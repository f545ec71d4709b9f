"""What a training loop has to tell, and to whom: rows of metrics, decisions, checkpoints."""

from typing import Any, Protocol

import jaxmgrit as jm
from experiments.training.checkpoint import Checkpoint

Row = dict[str, Any]


class Listener(Protocol):
    """What becomes of what the loop has to tell."""

    def row(self, row: Row) -> None:
        """A row of metrics."""

    def event(self, event: Row) -> None:
        """A decision, and why."""

    def cut(self, iteration: int) -> None:
        """Only the rows before an iteration still hold."""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """A state that is worth going on from."""


class Silent:
    """What all processes but the first do with it: nothing."""

    def row(self, row: Row) -> None:
        """Nothing."""

    def event(self, event: Row) -> None:
        """Nothing."""

    def cut(self, iteration: int) -> None:
        """Nothing."""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Nothing."""


def figures(info: jm.Info | jm.PublishedInfo) -> Row:
    """An iteration's info, on the host, as a part of a row; the published loop's tells of its line search too."""
    search: Row = {}
    if isinstance(info, jm.PublishedInfo):
        search = {"step_size": float(info.step_size), "trials": int(info.trials), "outcome": int(info.outcome)}
    return {
        "inexact_loss": float(info.loss),
        "inexact_accuracy": float(info.aux["accuracy"]),
        "objective": float(info.objective),
        "grad_norm": float(info.grad_norm),
        "residual_norm": float(info.residual_norm),
        "adjoint_residual_norm": float(info.adjoint_residual_norm),
        "result": int(info.result),
        **search,
    }
