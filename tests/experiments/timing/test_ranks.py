"""Timing MPI ranks: the benchmark and time to accuracy with workers that are MPI jobs."""

import json

import pytest
from processes import launch

from experiments import benchmark, time_to_accuracy
from experiments.config.reader import read
from experiments.timing.workers import Place, Worker, WorkerError


@pytest.fixture(autouse=True)
def mpi(monkeypatch):
    launch.needs_mpi()
    for key, value in launch.environment().items():
        monkeypatch.setenv(key, value)


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
    worker = Worker(Place(None, 2, mpi=True))
    try:
        found = worker.ask(time_to_accuracy.train, method.config(config, 0.02, 0), 1.0, 3)
        with pytest.raises(WorkerError, match="KeyError"):
            worker.ask(benchmark.time_program, "nothing of this name")
    finally:
        worker.close()
    local = time_to_accuracy.Method("local", "one_shot", 1, 1)
    alone = time_to_accuracy.train({}, local.config(config, 0.02, 0), 1.0, 3)
    assert [point[::2] for point in found.points] == [point[::2] for point in alone.points]
