"""Timing MPI ranks: the benchmark and time to accuracy with workers that are MPI jobs."""

import json
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from processes import launch

from experiments import benchmark, time_to_accuracy
from experiments.config.reader import read
from experiments.timing import programs, ranks
from experiments.timing.devices import Devices
from experiments.timing.workers import Worker, WorkerError


@pytest.fixture(autouse=True)
def mpi(monkeypatch):
    launch.needs_mpi()
    for key, value in launch.environment().items():
        monkeypatch.setenv(key, value)


@pytest.mark.slow
def test_nothing_that_starts_ranks_can_be_entered_by_others(monkeypatch):
    folders, modes, started = [], [], subprocess.Popen

    def start(command, **options):
        """Note who may enter the folder and its pipes; and from now on no socket of this process may listen."""
        folders.append(Path(command[command.index("experiments.timing.workers") + 1]))
        modes.extend(stat.S_IMODE(path.stat().st_mode) for path in (folders[0], *folders[0].iterdir()))
        monkeypatch.setattr(socket.socket, "listen", None)
        return started(command, **options)

    monkeypatch.setattr(ranks.subprocess, "Popen", start)
    worker = Worker(Devices(2, mpi=True))
    monkeypatch.undo()
    try:
        assert modes == [0o700, *[0o600] * 4]
        assert not folders[0].exists(), "the pipes have no name any more"
        with pytest.raises(WorkerError, match="KeyError"):
            worker.ask(programs.time_program, "nothing of this name")
    finally:
        worker.close()


def test_ranks_that_do_not_start_are_told_as_such(monkeypatch, tmp_path):
    for code, message in (
        ("exit 3", "mpirun ended with code 3 before its ranks had started"),
        ("sleep 30", "not started within 1 s"),
    ):
        (tmp_path / "mpirun").write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / "mpirun").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setattr(ranks, "STARTING", 1.0)
        with pytest.raises(WorkerError, match=message):
            Worker(Devices(2, mpi=True))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(WorkerError, match="mpirun is not on the PATH"):
        Worker(Devices(2, mpi=True))


@pytest.mark.slow
def test_ranks_are_timed_beside_one_device(tmp_path, capsys):
    file = tmp_path / "found.json"
    small = ["--layers", "32", "--width", "2", "--batch", "2", "--factor", "8", "--layouts", "batch_first"]
    more = ["--ranks", "2", "--loop", "2", "--repeats", "1", "--only", "2 levels, m = 8", "--json", str(file)]
    assert benchmark.main([*small, *more]) == 0
    (case,) = json.loads(file.read_text())["cases"]
    assert {row["kind"] for row in case["programs"] if row["mpi"]} == {"data parallel", "one-shot"}
    assert all(row["gradient_error"] < 1e-2 for row in case["programs"])
    assert "2 ranks" in capsys.readouterr().out


@pytest.mark.slow
def test_a_training_on_ranks_is_that_on_one_device_and_errors_come_back():
    tiny = "--network.layers 16 --network.width 2 --problem.train-per-class 4 --problem.validation-per-class 4"
    more = "--solver.coarsening-factor 4 --optimizer.warmup 0 --iterations 4 --evaluation.every 2 --dtype float64"
    config = read(["configs/level_sets.yaml", *tiny.split(), *more.split()], "a test")
    method = time_to_accuracy.Method("ranks", "one_shot", 2, 2, mpi=True)
    worker = Worker(Devices(2, mpi=True))
    try:
        found = worker.ask(time_to_accuracy.train, method.config(config, 0.02, 0), 1.0, 3)
        with pytest.raises(WorkerError, match="KeyError"):
            worker.ask(programs.time_program, "nothing of this name")
    finally:
        worker.close()
    local = time_to_accuracy.Method("local", "one_shot", 1, 1)
    alone = time_to_accuracy.train({}, local.config(config, 0.02, 0), 1.0, 3)
    assert [point[::2] for point in found.points] == [point[::2] for point in alone.points]
