"""End trainings at random moments, go on, and compare with undisturbed ones: the full crash suite as one command.

    python -m tests.processes.crash [--kills 20] [--under local mesh mpi distributed] [--by KILL HUP ...] [--seed 0]

Real processes of `experiments.train`, ended again and again until the run has come to its end: by SIGKILL during steps
or while a checkpoint is being written, by SIGHUP, SIGUSR1 or SIGTERM to one, by a SIGSTOP to one of them (of several
processes the others name it, and end it when their patience does), and by a reader of their output that goes away.
Afterwards the metrics must equal those of an undisturbed run bit for bit, and so must the parameters; after every end
all checkpoints must be whole, and at most one interval of iterations lost, or none where the end was announced.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from processes import launch  # noqa: E402

EVERY, ITERATIONS = 5, 300  # iterations between checkpoints, and in all
CONFIG = f"""
dtype: float64
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
SEVERAL = ("mpi", "distributed")  # of several processes
ANNOUNCED = ("HUP", "USR1", "TERM")  # signals that end a training with a checkpoint
BY = ("KILL", *ANNOUNCED, "STOP", "reader")
PATIENCE = 20  # seconds for a stopped process, more than it takes to name it
LIMIT = 300.0  # seconds for any one process, on a busy machine


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
    """The running processes of a training, all of them ended when the context is left.

    Args:
        under: The backend.
        words: Of their command line.
        folder: Of the run, which is named there.
        cache: A folder for compiled programs.
        read: Whether their standard output is a pipe that this process reads, rather than the log.
    """

    def __init__(self, under: str, words: list[str], folder: Path, cache: Path, read: bool = False) -> None:
        cached = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self._mark = str(folder)
        self._log = (folder.parent / "log").open("a+")
        self._begin = self._log.seek(0, os.SEEK_END)
        # In the suite its own folder, where more is compiled already.
        out, environment = subprocess.PIPE if read else self._log, {**cached, **launch.environment()}
        self._started = [
            subprocess.Popen(command, stdout=out, stderr=self._log, env=environment, cwd=launch.REPOSITORY)
            for command in commands(under, words)
        ]

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self.stop_reading()
        self._log.close()

    def running(self) -> bool:
        """Whether any of them still runs."""
        return any(process.poll() is None for process in self._started)

    def codes(self) -> list[int]:
        """Wait for their exit codes."""
        return [process.wait(LIMIT) for process in self._started]

    def workers(self) -> list[int]:
        """The processes that train, by number, whoever started them: the first of them last."""
        ranked = []
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                environment = dict(line.partition(b"=")[::2] for line in (entry / "environ").read_bytes().split(b"\0"))
            except OSError:
                continue
            if words[:3] == [sys.executable.encode(), b"-m", b"experiments.train"] and self._mark.encode() in words:
                index = words[words.index(b"--backend.process") + 1] if b"--backend.process" in words else b"0"
                ranked.append((int(environment.get(b"PMI_RANK", index)), int(entry.name)))
        return [number for _, number in sorted(ranked, reverse=True)]

    def kill(self) -> None:
        """SIGKILL to all of them: the workers first, whoever started them."""
        for number in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        for process in self._started:
            process.kill()
            process.wait()

    def stop_reading(self) -> None:
        """Close this process's end of their standard output."""
        for process in self._started:
            if process.stdout:
                process.stdout.close()

    def printed(self) -> str:
        """What they have written to the log, the end of it."""
        self._log.seek(self._begin)
        return self._log.read()[-3000:]


def rows(folder: Path) -> list[dict[str, object]]:
    """The complete rows of the metrics, without times."""
    if not (folder / "metrics.jsonl").exists():
        return []
    lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def checkpoints(folder: Path) -> list[int]:
    """Iterations of the checkpoints, each verified by its checksum."""
    numbers = []
    for path in folder.glob("checkpoints/[0-9]*"):
        manifest = json.loads((path / "manifest.json").read_bytes())
        arrays = (path / "state.safetensors").read_bytes()
        assert hashlib.sha256(arrays).hexdigest() == manifest["arrays"]["sha256"], f"{path} is damaged"
        numbers.append(int(path.name))
    return sorted(numbers)


def wait_for(training: Training, done: Callable[[], bool]) -> bool:
    """Wait until something is done; False if the training has ended before.

    Raises:
        AssertionError: It takes too long.
    """
    deadline = time.monotonic() + LIMIT
    while training.running():
        assert time.monotonic() < deadline, training.printed()
        if done():
            return training.running()
        time.sleep(0.0005)
    return False


def until(training: Training, folder: Path, choice: random.Random, iterations: int, left: int) -> bool:
    """Wait for a random moment of a training that is to end so often yet; False if it has ended before."""
    count, last = len(rows(folder)), iterations - 5
    target = min(count + choice.randrange(1, max(2, 2 * (last - count) // (left + 1))), last)
    writing = choice.random() < 0.5
    reached = wait_for(
        training,
        lambda: _count(folder) >= target and (not writing or any(folder.glob("checkpoints/.unfinished-*"))),
    )
    time.sleep(0.0 if writing else choice.random() * 0.02)
    return reached and training.running()


def _count(folder: Path) -> int:
    try:
        return (folder / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def act(by: str, training: Training, folder: Path, under: str) -> None:
    """End a training, or disturb and then kill it.

    Raises:
        AssertionError: It does not behave as it is said to.
    """
    if by in ANNOUNCED:
        os.kill(training.workers()[0], getattr(signal, f"SIG{by}"))
        codes = training.codes()
        assert all(codes) or _is_finished(folder), f"exit codes {codes}:\n{training.printed()}"
        assert "Traceback" not in training.printed()
    elif by == "STOP":
        number = training.workers()[0]
        os.kill(number, signal.SIGSTOP)
        if under in SEVERAL:
            start = time.monotonic()
            wait_for(training, lambda: "is stopped (by SIGSTOP" in training.printed())
            assert "is stopped (by SIGSTOP" in training.printed() and time.monotonic() - start < 60
            codes = training.codes()
            assert all(codes), f"exit codes {codes}:\n{training.printed()}"
            assert f"has been stopped for {PATIENCE} s (backend.patience) and is ended" in training.printed()
        else:
            time.sleep(1.0)
            os.kill(number, signal.SIGCONT)
            before = _count(folder)
            wait_for(training, lambda: _count(folder) > before)
    elif by == "reader":
        training.stop_reading()
        before = _count(folder)
        goes_on = wait_for(training, lambda: _count(folder) > before + 60)
        # Whether ranks outlive the output of their mpirun is for that to decide.
        assert goes_on or under == "mpi" or _is_finished(folder), training.printed()
    training.kill()


def _is_finished(folder: Path) -> bool:
    try:
        return json.loads((folder / "summary.json").read_text())["status"] == "finished"
    except FileNotFoundError:
        return False


def finished(training: Training) -> None:
    """Wait for a good end."""
    codes = training.codes()
    assert all(code == 0 for code in codes), f"exit codes {codes}:\n{training.printed()}"


def crash(
    under: str,
    events: Sequence[str],
    seed: int,
    place: Path,
    iterations: int = ITERATIONS,
    say: Callable[[str], None] = lambda sentence: None,
) -> None:
    """End a training in these ways one after another, bring it to its end, and compare it with an undisturbed one.

    Raises:
        AssertionError: They differ, a checkpoint is damaged, or more than an interval was lost.
    """
    choice, config = random.Random(seed), place / "config.yaml"
    config.write_text(f"iterations: {iterations}{CONFIG}")
    plain, folder, cache = place / "plain", place / "ended", place / "cache"
    with Training(under, [str(config), "--output.folder", str(plain)], plain, cache) as training:
        finished(training)
    left, words = list(events), [str(config), "--output.folder", str(folder)]
    while left:
        by = left[0]
        patience = ["--backend.patience", str(PATIENCE)] if by == "STOP" and under in SEVERAL else []
        with Training(under, [*words, *patience], folder, cache, by == "reader") as training:
            if until(training, folder, choice, iterations, len(left)):
                act(by, training, folder, under)
                left = left[1:]
            else:
                finished(training)
        count, kept = len(rows(folder)), checkpoints(folder)
        lost = 1 if by in ANNOUNCED else EVERY + 1
        assert not kept or count - kept[-1] <= lost or count > iterations, f"{by}: {count} rows, checkpoints {kept}"
        say(f"{under}: {len(left)} of {len(events)} left; {by} after {count} rows; checkpoints {kept}")
        words = ["--resume", str(folder)] if folder.exists() else words
        if _is_finished(folder):  # begin again
            assert rows(folder) == rows(plain)
            folder = place / f"ended-{len(left)}-{time.monotonic_ns()}"
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
    parser.add_argument("--kills", type=int, default=20, help="by SIGKILL; a quarter as many by each other signal")
    parser.add_argument("--under", nargs="+", choices=UNDER, default=UNDER)
    parser.add_argument("--by", nargs="+", choices=BY, default=BY)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    times = {"KILL": given.kills, **dict.fromkeys(ANNOUNCED, -(-given.kills // 4))}
    for under in given.under:
        events = [by for by in given.by for _ in range(times.get(by, 1))]
        random.Random(given.seed).shuffle(events)
        with tempfile.TemporaryDirectory() as place:
            crash(under, events, given.seed, Path(place), say=lambda sentence: print(sentence, flush=True))
        print(f"{under}: ended {len(events)} times, the run equals the undisturbed one bit for bit", flush=True)


if __name__ == "__main__":
    main()
