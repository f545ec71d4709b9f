"""What the first process of a run does with what the loop tells: the folder's files, the terminal, checkpoints."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

from experiments.errors import TrainingStopped
from experiments.runs.checkpoints import Checkpoints
from experiments.runs.folder import EVENTS, Run
from experiments.runs.metrics import METRICS
from experiments.runs.progress import Progress
from experiments.training.checkpoint import Checkpoint
from experiments.training.records import Row


class Recorder:
    """Writes and shows; whatever cannot be written ends the training with a sentence and the checkpoints intact.

    Args:
        run: The open folder.
        progress: The terminal.
        checkpoints: Where checkpoints go.

    Attributes:
        first: The row of iteration 0; None where it has been lost.
        last: The latest row; None before there is any.
    """

    def __init__(self, run: Run, progress: Progress, checkpoints: Checkpoints) -> None:
        self._run = run
        self._progress = progress
        self._checkpoints = checkpoints
        self.first = run.first
        self.last: Row | None = None
        self._moved = False  # whether that was said

    def row(self, row: Row) -> None:
        """Write and show a row of metrics."""
        with self.writing():
            self._run.metrics.add(row)
        self._progress.show(row)
        self.first, self.last = row if row["iteration"] == 0 else self.first, row

    def event(self, event: Row) -> None:
        """Write and show a decision."""
        with self.writing():
            self._run.events.add(event)
        if event["reason"]:
            self._progress.say(f"iteration {event['iteration']}: {event['action']}: {event['reason']}")

    def cut(self, iteration: int) -> None:
        """Remove the rows from an iteration on."""
        with self.writing():
            self._run.metrics.cut_rows(iteration)

    def cut_events(self, count: int) -> None:
        """Remove all but the first decisions, and say so where some of them are missing."""
        with self.writing():
            kept = self._run.events.cut_lines(count)
        if kept < count:
            self._progress.say(f"{EVENTS}: {count - kept} of the {count} decisions taken so far are missing")

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, once all that it refers to is on disk."""
        with self.writing():
            self._run.metrics.sync()
            self._run.events.sync()
            self._checkpoints.write(checkpoint)
        if not (self._moved or self._run.metrics.is_in_place()):
            self._moved = True
            self._progress.say(
                f"{self._run.folder / METRICS} has been moved, removed or replaced: rows are not written there any "
                "more. Put it back before the run ends."
            )

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn an error of the disk into the sentence a user needs."""
        try:
            yield
        except OSError as error:
            latest = self._checkpoints.paths()
            raise TrainingStopped(
                f"{error.filename or self._run.folder} cannot be written: {error.strerror}. "
                + (f"The checkpoint of iteration {int(latest[0].name)} is intact. " if latest else "")
                + f"Make room, then {go_on(self._run.folder)}"
            ) from None


def go_on(folder: Path | None, processes: int = 1) -> str:
    """How to go on with a run of so many processes."""
    again = "" if processes == 1 else f" (all {processes} as before, with the same --backend options)"
    return f"go on with: python -m experiments.train --resume {shlex.quote(str(folder)) if folder else 'RUN'}{again}"
