"""Damage run folders at random; whatever is read back must be true or refused by name. The full count as one command.

    python -m tests.helpers.damage [--checkpoints 3000] [--folders 3000] [--seed 0] [--only NUMBER]

A checkpoint that has been damaged is refused, or is bit for bit what was written. Of the folder's other files (config,
metrics, decisions, summary, parameters) whatever is left, `--resume` and `evaluate` can go on, or name the file or the
key: nothing else is raised, in bounded time and memory, and the parameters that they take are those that training left.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments import problems  # noqa: E402
from experiments.config.reader import read_run  # noqa: E402
from experiments.errors import ConfigError  # noqa: E402
from experiments.runs.binding import Binding  # noqa: E402
from experiments.runs.checkpoints import Checkpoints  # noqa: E402
from experiments.runs.folder import Run, read_metrics  # noqa: E402
from experiments.runs.newest import load_trained  # noqa: E402
from experiments.train import main as train  # noqa: E402
from experiments.training.checkpoint import Refused  # noqa: E402
from experiments.training.session import Session  # noqa: E402
from helpers.runs import TINY  # noqa: E402

SECONDS, MEMORY = 20.0, 2**28  # of one reading, on a busy machine; and what all of them may add to the process's memory
FILES = ("config.yaml", "metrics.jsonl", "events.jsonl", "data.json", "summary.json", "parameters.npz")
VALUES = ("-5", "1e9", "1e999", "null", "true", '"x"', "[]", "{}", "NaN", "9" * 400, "0.5", '"\\ud800"')


@dataclasses.dataclass(frozen=True)
class Example:
    """A finished run that is read again and again.

    Attributes:
        folder: Of the run.
        leaves: The bytes of every leaf of a checkpoint's snapshot by the checkpoint's name.
        params: Likewise of the parameters by iteration.
        read: From a checkpoint's folder to its snapshot and what the loop kept.
    """

    folder: Path
    leaves: dict[str, list[bytes]]
    params: dict[int, list[bytes]]
    read: Callable[[Path], tuple[object, object]]


def leaves(tree: object) -> list[bytes]:
    """The bytes of a pytree's leaves."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def example(folder: Path) -> Example:
    """The readings of a whole run."""
    jax.config.update("jax_enable_x64", True)
    config, _ = read_run(["--resume", str(folder)], "experiments.train")
    data = problems.load(config.problem, config.seed)
    session, checkpoints = Session(config, data), Checkpoints(folder, 3, Binding(config, data))

    def read(path: Path) -> tuple[object, object]:
        checkpoint = checkpoints.read(path, session.like)
        return checkpoint.snapshot, checkpoint.loop

    params = {int(path.name): leaves(load_trained(config, data, folder, int(path.name)).params)
              for path in checkpoints.paths()}  # fmt: skip
    return Example(folder, {path.name: leaves(read(path)) for path in checkpoints.paths()}, params, read)


def damaged(data: bytes, choice: random.Random) -> bytes:
    """Bytes after one to three damages."""
    changed = bytearray(data)
    for _ in range(choice.randint(1, 3)):
        at, length = choice.randrange(len(changed) + 1), min(len(changed), choice.choice((1, 4, 64, 4096)))
        kind = choice.choice(("flip", "cut", "remove", "insert", "zeros", "repeat", "move", "value"))
        if kind == "flip" and at < len(changed):
            changed[at] ^= 1 << choice.randrange(8)
        elif kind == "cut":
            del changed[at:]
        elif kind == "remove":
            del changed[at : at + length]
        elif kind == "insert":
            changed[at:at] = choice.randbytes(length)
        elif kind == "zeros":
            changed[at : at + length] = bytes(len(changed[at : at + length]))
        elif kind == "repeat":
            changed[at:at] = changed[at : at + length]
        elif kind == "move":
            other = choice.randrange(len(changed) + 1)
            changed[at : at + length] = changed[other : other + length]
        elif kind == "value" and (colon := changed.find(b": ", at)) >= 0:
            end = min(
                place for place in (changed.find(b",", colon), changed.find(b"\n", colon), len(changed)) if place > 0
            )
            changed[colon + 2 : end] = choice.choice(VALUES).encode()
    return bytes(changed)


def damage(path: Path, choice: random.Random) -> None:
    """Damage a file, or put something else in its place."""
    kind = choice.choice(("bytes",) * 12 + ("missing", "folder", "endless", "pipe", "hole", "itself"))
    if kind == "bytes":
        path.write_bytes(damaged(path.read_bytes(), choice))
        return
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "itself":
        path.symlink_to(path)
    elif kind == "hole":
        with path.open("wb") as file:
            file.truncate(2**42)


@contextlib.contextmanager
def bounded(what: str):
    """The time of one reading, and the memory that this process has ever taken more than before it."""
    start, before = time.monotonic(), peak()
    yield
    assert time.monotonic() - start < SECONDS, f"{what}: {time.monotonic() - start:.0f} s"
    assert peak() - before < MEMORY, f"{what}: {(peak() - before) / 2**20:.0f} MiB"


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def checkpoint(run: Example, number: int, seed: int, place: Path) -> bool:
    """Damage a checkpoint; whether it is still read.

    Raises:
        AssertionError: It is read, but is not what was written.
    """
    choice = random.Random(f"{seed} checkpoint {number}")
    name = choice.choice(sorted(run.leaves))
    path = Path(shutil.copytree(run.folder / "checkpoints" / name, place / name))
    damage(path / choice.choice(("manifest.json", "state.safetensors")), choice)
    try:
        with bounded(f"checkpoint {number}"):
            own = run.read(path)
    except Refused as error:
        assert str(error).startswith(f"{path}: "), error
        return False
    assert leaves(own) == run.leaves[name], f"checkpoint {number} is misread"
    return True


def folder(run: Example, number: int, seed: int, place: Path) -> bool:
    """Damage one or two of a run folder's other files; whether all of them can still be used.

    Raises:
        AssertionError: Parameters are not those of their iteration, or rows not in order.
    """
    choice = random.Random(f"{seed} folder {number}")
    copied = Path(shutil.copytree(run.folder, place / "run"))
    for name in choice.sample(FILES, choice.choice((1, 1, 2))):
        damage(copied / name, choice)
    used = 0
    with bounded(f"folder {number}"):
        for act in (_evaluate, _resume, _rows):
            try:
                act(copied, run)
                used += 1
            except (ConfigError, ValueError) as error:
                assert isinstance(error, ConfigError) or str(error).startswith(str(copied)), repr(error)
                assert str(error) and "Traceback" not in str(error)
    return used == 3


def _evaluate(path: Path, run: Example) -> None:
    """What `experiments.evaluate` reads."""
    config, data = _read(path)
    trained = load_trained(config, data, path)
    assert leaves(trained.params) == run.params[trained.iteration], "parameters of another iteration"


def _resume(path: Path, run: Example) -> None:
    """What `experiments.train --resume` reads and repairs before it trains."""
    config, data = _read(path)
    checkpoints = Checkpoints(path, 3, Binding(config, data))
    found, _ = checkpoints.latest(Session(config, data).like)
    if found is None:
        return
    assert leaves((found.snapshot, found.loop)) == run.leaves[f"{found.iteration:08d}"]
    with Run(config, data, found.iteration) as record:
        record.metrics.cut_rows(found.iteration)
        record.events.cut_lines(3)
    _rows(path, run)


def _rows(path: Path, run: Example) -> None:
    """What pictures are drawn from."""
    numbers = [row["iteration"] for row in read_metrics(path)]
    assert numbers == sorted(set(numbers))


def _read(path: Path) -> tuple:
    config, _ = read_run(["--resume", str(path)], "experiments.train")
    return config, problems.load(config.problem, config.seed)


def repeat(act: Callable, run: Example, numbers: range | list[int], seed: int, say=lambda sentence: None) -> int:
    """Damage the run so many times; how often it could be used nevertheless."""
    used = 0
    for number in numbers:
        with tempfile.TemporaryDirectory() as place:
            try:
                used += act(run, number, seed, Path(place))
            except Exception as error:
                raise AssertionError(f"{act.__name__} {number} of seed {seed}: {error!r}") from error
        if (number + 1) % 100 == 0:
            say(f"{act.__name__}: {number + 1} damages, {used} of them harmless")
    return used


def main() -> None:
    """The full count."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoints", type=int, default=3000)
    parser.add_argument("--folders", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="only the damage of this number")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "tiny.yaml").write_text(TINY)
        assert train([f"{place}/tiny.yaml", "--output.folder", f"{place}/run", "--quiet"]) == 0
        run, before = example(Path(place) / "run"), peak()
        for act, count in ((checkpoint, given.checkpoints), (folder, given.folders)):
            numbers = range(count) if given.only is None else [given.only]
            start = time.monotonic()
            used = repeat(act, run, numbers, given.seed, lambda sentence: print(sentence, flush=True))
            print(
                f"{act.__name__}: {len(numbers)} damages in {time.monotonic() - start:.0f} s, {used} of them harmless, "
                f"all others refused by name; at most {(peak() - before) / 2**20:.0f} MiB more than before",
                flush=True,
            )


if __name__ == "__main__":
    main()
