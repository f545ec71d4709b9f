"""The folder a run leaves behind, written as the run goes and read back afterwards.

- config.yaml: the resolved config, which repeats the run.
- data.json: where the data were found, and what was done with them.
- metrics.jsonl: one JSON object per iteration; the row of iteration i is about the parameters after i updates.
- events.jsonl: one JSON object per decision taken on the way: what was changed, and why.
- checkpoints/: what `--resume` goes on from, see `experiments.runs.checkpoints`.
- parameters.npz: the final parameters, see `experiments.runs.parameters.save_params`.
- summary.json: how the run ended (finished, stopped or interrupted), with the last row of metrics.
- sample.txt: text that a character language model writes, see `experiments.runs.sample`.
- *.png: see `experiments.runs.pictures`.
"""

import contextlib
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import config as config_files
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.foundation.files import expanded
from experiments.foundation.numbers import is_number
from experiments.problems import Data
from experiments.runs.files import Unreadable, read_bounded, write_whole
from experiments.runs.metrics import METRICS, Lines, Row, Table, check_table, read_table
from experiments.runs.parameters import PARAMETERS, SUMMARY, load_params, save_params, write_summary
from experiments.training.nested import most_iterations

__all__ = ["Run", "load_params", "read_metrics", "save_params"]

EVENTS = "events.jsonl"
LARGEST_EVENTS = 2**26  # bytes; a decision has about 200
SAMPLE = "sample.txt"
PICTURES = (
    "training",
    "residuals",
    "confusion",
    "class_map",
    "misclassified",
    "predictions",
)  # names of those a run draws


class Run:
    """A run folder, open for writing: a new one, or that of a run to go on with. Use it as a context.

    Args:
        config: The resolved config.
        data: What is trained on.
        resume: The iteration from which to go on in `config.output.folder`; None: in a new folder.

    Attributes:
        folder: Where everything is written.
        metrics: One line per iteration.
        events: One line per decision: what was changed, and why.
        first: The row of iteration 0, if the folder has it.
        remarks: Sentences about what is damaged in the folder of a run to go on with.

    Raises:
        ConfigError: The folder exists and is not empty, or cannot be made; another process is training in it; or rows
            of the metrics are missing.
    """

    def __init__(self, config: Config, data: Data, resume: int | None = None) -> None:
        self.folder = output_folder(config) if resume is not None else _new_folder(config)
        self.first: Row | None = None
        self.remarks: list[str] = []
        facts = {"source": data.source, "facts": data.facts, "classes": data.names}
        facts |= {"sha256": data.sha256} if data.sha256 else {}
        with contextlib.ExitStack() as opened:
            try:
                # First of all: its lock keeps other processes out before anything is written over.
                self.metrics = self._open(METRICS, opened)
                self.events = self._open(EVENTS, opened)
                if resume is not None:
                    self._check(config, resume)
                write_whole(self.folder / "config.yaml", config_files.text(config).encode())
                write_whole(self.folder / "data.json", (json.dumps(facts, indent=2) + "\n").encode())
            except BlockingIOError:
                raise ConfigError(
                    f"output.folder = {str(self.folder)!r}: another process is training in it. Wait for that, or stop "
                    "it."
                ) from None
            except OSError as error:
                raise ConfigError(
                    f"output.folder = {str(self.folder)!r}: {error.filename or 'a file in it'} cannot be written: "
                    f"{error.strerror}. Make room or name another."
                ) from None
            # Up to here an error closes the files, from here on `__exit__` does.
            self._opened = opened.pop_all()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def begin(self, goes_on: bool) -> None:
        """Remove what told of an earlier end, where training goes on beyond it: it would outlive its truth.

        Args:
            goes_on: Whether there is anything to train.
        """
        if goes_on:
            for name in (SUMMARY, PARAMETERS, SAMPLE, *(f"{picture}.png" for picture in PICTURES)):
                (self.folder / name).unlink(missing_ok=True)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary.

        Raises:
            OSError: It cannot be written; then the one before is as it was.
        """
        write_summary(self.folder, summary)

    def _open(self, name: str, opened: contextlib.ExitStack) -> Lines:
        try:
            return opened.enter_context(contextlib.closing(Lines(self.folder / name)))
        except Unreadable as error:
            raise ConfigError(f"{self.folder / name}: {error}. Put the run's own file back.") from None

    def _check(self, config: Config, iteration: int) -> None:
        """Whether the metrics hold what they must before training goes on from an iteration."""
        path = self.folder / METRICS
        try:
            table = read_table(path, most_iterations(config))
            self.remarks = check_table(table, iteration, config.output.gaps)
        except Unreadable as error:
            raise ConfigError(
                f"{path}: {error}. Put the run's own file back; or go on without what is lost: --output.gaps true."
            ) from None
        self.first = table.rows[0] if table.rows and table.rows[0]["iteration"] == 0 else None


def read_metrics(folder: Path) -> list[Row]:
    """The rows of a run's metrics; null stands for numbers that are not finite, and damaged lines are skipped.

    Raises:
        ValueError: The file is missing or no regular file.
    """
    return _table(folder).rows


def read_events(folder: Path) -> list[Row]:
    """The decisions of a run, in their order; lines that hold none are skipped, and what is no such file holds none."""
    try:
        lines = read_bounded(folder / EVENTS, LARGEST_EVENTS).splitlines()
    except Unreadable:
        return []
    events = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            event = json.loads(line)
            events += [event] if isinstance(event, dict) and is_number(event.get("iteration")) else []
    return events


def _table(folder: Path) -> Table:
    try:
        return read_table(folder / METRICS)
    except Unreadable as error:
        raise ValueError(f"{folder / METRICS}: {error}") from None


def output_folder(config: Config) -> Path:
    """The folder that a config names, `~` expanded.

    Raises:
        ConfigError: There is no such home folder.
    """
    return expanded(str(config.output.folder), "output.folder")


def _new_folder(config: Config) -> Path:
    given = config.output.folder
    moment = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder, number = output_folder(config) if given else Path(f"runs/{config.name}-{moment}"), 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if given is None:  # two runs in one second
                number += 1
                folder = Path(f"runs/{config.name}-{moment}-{number}")
            elif folder.is_dir() and not any(folder.iterdir()):
                return folder
            else:
                raise ConfigError(
                    f"output.folder = {given!r}: expected a new or empty folder, as no run is ever overwritten. "
                    "Name another, leave it out, or remove what is there."
                ) from None
        except (OSError, ValueError) as error:  # ValueError: a name that the file system's encoding cannot say
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"output.folder = {str(folder)!r}: cannot be made: {reason}. Name a folder you may write to."
            ) from None
