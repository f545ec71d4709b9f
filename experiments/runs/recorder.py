"""What the first process of a run does with what the loop tells: the folder's files, the terminal, checkpoints."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

from experiments.runs.checkpoints import Checkpoint, Checkpoints
from experiments.errors import TrainingStopped
from experiments.training.loop import Row
from experiments.runs.progress import Progress
from experiments.runs.folder import Run


class Recorder:
    """Writes and shows; whatever cannot be written ends the training with a sentence and the checkpoints intact."""

    def __init__(self, run: Run, progress: Progress, checkpoints: Checkpoints) -> None:
        self._run = run
        self._progress = progress
        self._checkpoints = checkpoints

    def row(self, row: Row) -> None:
        """Write and show a row of metrics."""
        with self.writing():
            self._run.metrics.add(row)
        self._progress.show(row)

    def event(self, event: Row) -> None:
        """Write and show a decision."""
        with self.writing():
            self._run.events.add(event)
        if event["reason"]:
            self._progress.say(f"iteration {event['iteration']}: {event['action']}: {event['reason']}")

    def cut(self, rows: int, events: int | None = None) -> None:
        """Remove all but the first rows of the metrics, and of the decisions."""
        with self.writing():
            self._run.metrics.cut(rows)
            if events is not None:
                self._run.events.cut(events)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, once all that it refers to is on disk."""
        with self.writing():
            self._run.metrics.sync()
            self._run.events.sync()
            self._checkpoints.write(checkpoint)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn an error of the disk into the sentence a user needs."""
        try:
            yield
        except OSError as error:
            there = self._checkpoints.there()
            raise TrainingStopped(
                f"{error.filename or self._run.folder} cannot be written: {error.strerror}. "
                + (f"The checkpoint of iteration {int(there[0].name)} is intact. " if there else "")
                + f"Make room, then {go_on(self._run.folder)}"
            ) from None


def go_on(folder: Path | None) -> str:
    """How to go on with a run."""
    return f"go on with: python -m experiments.train --resume {shlex.quote(str(folder)) if folder else 'RUN'}"


class Silent:
    """What the other processes do: nothing."""

    def row(self, row: Row) -> None:
        """Nothing."""

    def event(self, event: Row) -> None:
        """Nothing."""

    def cut(self, rows: int) -> None:
        """Nothing."""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Nothing."""
