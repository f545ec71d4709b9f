"""Kill trainings at random moments, go on, and compare with undisturbed ones: the full crash suite as one command.

    python -m tests.processes.crash [--kills 20] [--under local mesh mpi distributed] [--seed 0]

Real processes of `experiments.train`, ended by SIGKILL during steps or while a checkpoint is being written, again and
again, until the run has come to its end. Afterwards the metrics must equal those of an undisturbed run bit for bit, and
so must the parameters; after every kill all checkpoints must be whole, and at most one interval of iterations lost.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from processes import launch  # noqa: E402

EVERY, ITERATIONS = 5, 300  # iterations between checkpoints, and in all
CONFIG = f"""
dtype: float64
iterations: {ITERATIONS}
problem: {{name: level_sets, train_per_class: 8, validation_per_class: 4}}
network: {{layers: 19, width: 3}}
optimizer: {{learning_rate: 0.02, anticipate: 0.1}}
training: {{schedule: predict_then_sweep}}
solver: {{coarsening_factor: 4, levels: 2, coarse_params: average, coarse_step: midpoint}}
evaluation: {{every: 50}}
checkpoints: {{every: {EVERY}, keep: 2}}
output: {{pictures: false}}
"""
UNDER = ("local", "mesh", "mpi", "distributed")
LIMIT = 120.0  # seconds for any one process


def commands(under: str, words: list[str]) -> list[list[str]]:
    """The command lines of a training's processes."""
    train = [sys.executable, "-m", "experiments.train", *words]
    if under == "mpi":
        return [["mpirun", "-n", "2", *train, "--backend.kind", "mpi"]]
    if under == "mesh":
        return [[*train, "--backend.devices", "2"]]
    if under == "distributed":
        where = ["--backend.coordinator", f"localhost:{launch.free_port()}", "--backend.processes", "2"]
        return [[*train, *where, "--backend.process", str(i)] for i in range(2)]
    return [train]


class Training:
    """The running processes of a training, all of them ended when the context is left."""

    def __init__(self, under: str, words: list[str], folder: Path, cache: Path) -> None:
        cached = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self._mark = str(folder)
        self._log = (folder.parent / "log").open("a+")
        self._started = [
            subprocess.Popen(
                command, stdout=self._log, stderr=subprocess.STDOUT, env={**launch.environment(), **cached}, cwd=ROOT
            )
            for command in commands(under, words)
        ]

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._log.close()

    def running(self) -> bool:
        """Whether any of them still runs."""
        return any(process.poll() is None for process in self._started)

    def codes(self) -> list[int]:
        """Wait for their exit codes."""
        return [process.wait(LIMIT) for process in self._started]

    def kill(self) -> None:
        """SIGKILL to all of them: the workers first, whoever started them."""
        own = {str(process.pid) for process in self._started}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and entry.name not in own and self._is_worker(entry):
                os.kill(int(entry.name), signal.SIGKILL)
        for process in self._started:
            process.kill()
            process.wait()

    def _is_worker(self, entry: Path) -> bool:
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return b"experiments.train" in words and self._mark.encode() in words

    def printed(self) -> str:
        """What they printed, the end of it."""
        self._log.seek(0)
        return self._log.read()[-3000:]


ROOT = launch.REPOSITORY


def rows(folder: Path) -> list[dict[str, object]]:
    """The complete rows of the metrics, without times."""
    if not (folder / "metrics.jsonl").exists():
        return []
    lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def checkpoints(folder: Path) -> list[int]:
    """Iterations of the checkpoints, each verified by its checksum."""
    found = []
    for path in folder.glob("checkpoints/[0-9]*"):
        manifest = json.loads((path / "manifest.json").read_bytes())
        arrays = (path / "state.safetensors").read_bytes()
        assert hashlib.sha256(arrays).hexdigest() == manifest["arrays"]["sha256"], f"{path} is damaged"
        found.append(int(path.name))
    return sorted(found)


def until(training: Training, folder: Path, choice: random.Random) -> bool:
    """Wait for a random moment of a training; False if it has ended before."""
    target = min(len(rows(folder)) + choice.randrange(1, ITERATIONS // 4), ITERATIONS - 5)
    writing, deadline = choice.random() < 0.5, time.monotonic() + LIMIT
    while training.running():
        assert time.monotonic() < deadline, training.printed()
        if _count(folder) >= target and (not writing or any(folder.glob("checkpoints/.unfinished-*"))):
            time.sleep(0.0 if writing else choice.random() * 0.02)
            return training.running()
        time.sleep(0.0005)
    return False


def _count(folder: Path) -> int:
    try:
        return (folder / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def finished(training: Training) -> None:
    """Wait for a good end."""
    codes = training.codes()
    assert all(code == 0 for code in codes), f"exit codes {codes}:\n{training.printed()}"


def crash(under: str, kills: int, seed: int, place: Path, say=lambda sentence: None) -> None:
    """Kill a training so many times, bring it to its end, and compare it with an undisturbed one.

    Raises:
        AssertionError: They differ, a checkpoint is damaged, or more than an interval was lost.
    """
    choice, config = random.Random(seed), place / "config.yaml"
    config.write_text(CONFIG)
    plain, folder, cache = place / "plain", place / "killed", place / "cache"
    with Training(under, [str(config), "--output.folder", str(plain)], plain, cache) as training:
        finished(training)
    done, words = 0, [str(config), "--output.folder", str(folder)]
    while done < kills:
        with Training(under, words, folder, cache) as training:
            if until(training, folder, choice):
                training.kill()
                done += 1
        count, there = len(rows(folder)), checkpoints(folder)
        assert not there or count - there[-1] <= EVERY + 1, f"{count} rows, checkpoints {there}"
        say(f"{under}: kill {done} of {kills} after {count} rows; checkpoints {there}")
        words = ["--resume", str(folder)] if folder.exists() else words
        if count > ITERATIONS:  # it came to its end: begin again
            assert rows(folder) == rows(plain)
            folder = place / f"killed-{done}"
            words = [str(config), "--output.folder", str(folder)]
    with Training(under, words, folder, cache) as training:
        finished(training)
    assert rows(folder) == rows(plain), f"{under}: the metrics differ"
    ours, theirs = np.load(folder / "parameters.npz"), np.load(plain / "parameters.npz")
    for name in theirs.files:
        np.testing.assert_array_equal(ours[name], theirs[name])


def main() -> None:
    """The full suite."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--under", nargs="+", choices=UNDER, default=UNDER)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for under in given.under:
        with tempfile.TemporaryDirectory() as place:
            crash(under, given.kills, given.seed, Path(place), lambda sentence: print(sentence, flush=True))
        print(
            f"{under}: the run that was killed {given.kills} times equals the undisturbed one bit for bit", flush=True
        )


if __name__ == "__main__":
    main()
