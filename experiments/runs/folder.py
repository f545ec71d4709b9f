"""The folder a run leaves behind, written as the run goes and read back afterwards.

- config.yaml: the resolved config, which repeats the run.
- data.json: where the data were found, and what was done with them.
- metrics.jsonl: one JSON object per iteration; the row of iteration i is about the parameters after i updates.
- events.jsonl: one JSON object per decision taken on the way: what was changed, and why.
- checkpoints/: what `--resume` goes on from, see `experiments.runs.checkpoints`.
- parameters.npz: the final parameters, see `save_params`.
- summary.json: how the run ended, with the last row of metrics.
- *.png: see `experiments.runs.pictures`.
"""

import datetime
import fcntl
import itertools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import jaxmgrit as jm
from experiments import config as config_files
from experiments.errors import ConfigError
from experiments.problems import Data
from experiments.config.schema import Config

PARTS = ("opening", "layers", "closing")


class Lines:
    """A file of JSON objects, one a line, that grows at its end and can be cut back to its first lines.

    Raises:
        BlockingIOError: Another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise
        except OSError:  # a file system without locks
            pass

    def add(self, row: Mapping[str, Any]) -> None:
        """Add one line, at once in the file; numbers that are not finite become null."""
        self._file.write(json.dumps({key: _finite(value) for key, value in row.items()}).encode() + b"\n")
        self._file.flush()

    def cut(self, lines: int) -> None:
        """Keep the first lines only."""
        self._file.seek(0)
        self._file.truncate(sum(len(line) for line in itertools.islice(self._file, lines)))

    def sync(self) -> None:
        """Wait until everything is on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Run:
    """A run folder, open for writing: a new one, or that of a run to go on with. Use it as a context.

    Args:
        config: The resolved config.
        data: What is trained on.
        resume: Go on in `config.output.folder`.

    Attributes:
        folder: Where everything is written.
        metrics: One line per iteration.
        events: One line per decision: what was changed, and why.

    Raises:
        ConfigError: The folder exists and is not empty, or cannot be made; or another process is training in it.
    """

    def __init__(self, config: Config, data: Data, resume: bool = False) -> None:
        self.folder = Path(str(config.output.folder)) if resume else _new_folder(config)
        facts = {"source": data.source, "facts": data.facts, "classes": data.names}
        try:
            self.metrics = Lines(self.folder / "metrics.jsonl")
            config_files.write(config, self.folder / ".config.yaml")
            (self.folder / ".config.yaml").replace(self.folder / "config.yaml")
            (self.folder / "data.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            self.events = Lines(self.folder / "events.jsonl")
        except BlockingIOError:
            raise ConfigError(
                f"output.folder = {str(self.folder)!r}: another process is training in it. Wait for that, or stop it."
            ) from None
        except OSError as error:
            raise ConfigError(
                f"output.folder = {str(self.folder)!r}: cannot be written: {error.strerror}. Make room or name another."
            ) from None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.metrics.close()
        self.events.close()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary."""
        text = json.dumps({key: _finite(value) for key, value in summary.items()}, indent=2)
        (self.folder / "summary.json").write_text(text + "\n", encoding="utf-8")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics; null stands for numbers that are not finite."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def save_params(path: Path, params: jm.Params) -> None:
    """Save parameters, dicts of arrays, as an npz file with one array per leaf.

    The names are the paths: `opening/w`, `opening/b`, `layers/w` (leading axis: the N layers), ..., `closing/b`.
    """

    def leaves(tree: Any, path: str) -> dict[str, np.ndarray]:
        if isinstance(tree, Mapping):
            return {name: leaf for key in tree for name, leaf in leaves(tree[key], f"{path}/{key}").items()}
        return {path: np.asarray(tree)}

    arrays = {name: leaf for part in PARTS for name, leaf in leaves(getattr(params, part), part).items()}
    np.savez(path, allow_pickle=False, **arrays)


def load_params(path: Path) -> jm.Params:
    """Load what `save_params` saved: `jm.Params` of dicts of NumPy arrays."""
    parts: dict[str, Any] = {part: {} for part in PARTS}
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            *above, leaf = name.split("/")
            place = parts
            for key in above:
                place = place.setdefault(key, {})
            place[leaf] = file[name]
    return jm.Params(**parts)


def _new_folder(config: Config) -> Path:
    given = config.output.folder
    moment = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder, number = Path(given or f"runs/{config.name}-{moment}"), 1
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
        except OSError as error:
            raise ConfigError(
                f"output.folder = {str(folder)!r}: cannot be made: {error.strerror}. Name a folder you may write to."
            ) from None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
