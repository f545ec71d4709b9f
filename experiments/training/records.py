"""What a training loop has to tell, and to whom: rows of metrics, decisions, checkpoints."""

import math
from collections import deque
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


class Gap:
    """Watches how far what training sees is from the exact evaluation, and says so when it cannot be chance.

    Both are there in every row with an exact evaluation, so that looking costs nothing. With mini-batches what training
    sees is averaged over the last iterations, and the gap must be there at two evaluations in a row.

    Args:
        batch: Points in a batch; None: all of them, every iteration.
        points: Points that are evaluated exactly.
    """

    RECENT, ACCURACY, LOSS = 50, 0.03, 1.3  # iterations; a difference; a ratio

    def __init__(self, batch: int | None, points: int) -> None:
        self._needed = 1 if batch is None else 2
        self._recent: deque[tuple[float, float]] = deque(maxlen=1 if batch is None else self.RECENT)
        self._points = batch or points, points
        self._seen = 0
        self._said = False

    def sentence(self, row: Row) -> str:
        """What to say of a row, "" mostly: it is said once."""
        self._recent.append((row["inexact_loss"], row["inexact_accuracy"]))
        if "exact_train_loss" not in row or row["iteration"] == 0 or self._said:
            return ""
        loss, accuracy = (sum(part) / len(self._recent) for part in zip(*self._recent, strict=True))
        batch, points = self._points
        chance = 2 * math.sqrt(1 / (batch * len(self._recent)) + 1 / points)  # 4 times the standard error, at most
        less = accuracy - row["exact_train_accuracy"] > max(self.ACCURACY, chance)
        worse = row["exact_train_loss"] > self.LOSS * loss + self.LOSS * chance
        self._seen = self._seen + 1 if less or worse else 0
        self._said = self._seen >= self._needed
        if not self._said:
            return ""
        return (
            f"training sees accuracy {accuracy:.1%} and loss {loss:.4g}, but the exact network has "
            f"{row['exact_train_accuracy']:.1%} and {row['exact_train_loss']:.4g} on training points: the solver is "
            "too inexact for these layers. Report exact figures only; use --control.active true, more solver.cycles, a "
            "smaller solver.coarsening_factor, or solver.coarse_params: all_layers with coarse_step: picard"
        )


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
        **({"mismatch": float(info.mismatch)} if isinstance(info, jm.Info) else {}),
        **search,
    }
