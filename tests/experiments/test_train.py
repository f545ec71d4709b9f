"""Whole runs, tiny: what they leave behind is complete, true, and the same however it was computed."""

import json
import logging
import sys
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest
from processes import launch

import jaxmgrit as jm
from experiments import config
from experiments.problems import level_sets
from experiments.runs import folder as runs
from experiments.train import main

ROOT = Path(__file__).parents[2]
TINY = """
name: tiny
dtype: float64
iterations: 6
problem: {name: level_sets, train_per_class: 20, validation_per_class: 10}
network: {layers: 19, width: 4}
optimizer: {learning_rate: 0.02}
solver: {coarsening_factor: 4, cycles: 1, coarse_params: average, coarse_step: midpoint}
evaluation: {every: 4}
output: {pictures: false}
"""


@pytest.fixture(autouse=True)
def _precision():
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    file = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    file.write_text(TINY)
    return str(file)


def train(tiny, folder, *words):
    assert main([tiny, "--output.folder", str(folder), *words]) == 0
    return runs.read_metrics(folder)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "new" / "run"
    before = jax.config.jax_enable_x64
    train(tiny, folder, "--output.pictures", "true")
    jax.config.update("jax_enable_x64", before)
    return folder


def column(rows, key):
    return np.array([row[key] for row in rows])


def test_metrics_have_a_row_per_iteration_and_exact_figures_now_and_then(run):
    rows = runs.read_metrics(run)
    assert [row["iteration"] for row in rows] == list(range(7))
    assert [row["iteration"] for row in rows if "exact_validation_accuracy" in row] == [0, 4, 6]
    for key in ("inexact_loss", "inexact_accuracy", "objective", "grad_norm", "residual_norm", "adjoint_residual_norm"):
        assert np.isfinite(column(rows, key)).all(), key
    assert rows[-1]["exact_train_loss"] < rows[0]["exact_train_loss"]
    assert (np.diff(column(rows, "seconds")[:-1]) > 0).all()
    assert rows[-1]["seconds"] == rows[-2]["seconds"]  # the last look is not training


def test_the_resolved_config_is_what_ran(run, tiny):
    resolved = config.read([str(run / "config.yaml")], "experiments.train")
    assert resolved == config.read(
        [tiny, "--output.folder", str(run), "--output.pictures", "true"], "experiments.train"
    )
    assert resolved.adjoint.coarse_step == "midpoint"
    assert resolved.backend.kind == "local"


def test_saved_parameters_give_the_reported_figures_in_plain_numpy(run):
    params = runs.load_params(run / "parameters.npz")
    assert params.layers["w"].shape == (19, 4, 4)
    data = level_sets.load(config.read([str(run / "config.yaml")], "experiments.train").problem, seed=0)
    summary = json.loads((run / "summary.json").read_text())
    for part, (x, y) in (("train", data.train), ("validation", data.validation)):
        u = np.tanh(x @ params.opening["w"] + params.opening["b"])
        for w, b in zip(params.layers["w"], params.layers["b"], strict=True):
            u = u + 5.0 / 19 * np.tanh(u @ w + b)
        logits = u @ params.closing["w"] + params.closing["b"]
        assert (logits.argmax(axis=1) == y).mean() == pytest.approx(summary[f"exact_{part}_accuracy"])
        loss = (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]).mean()
        assert loss == pytest.approx(summary[f"exact_{part}_loss"], rel=1e-12)
    assert summary["status"] == "finished"


def test_pictures_are_there_and_not_blank(run):
    names = ["class_map.png", "confusion.png", "residuals.png", "training.png"]
    assert sorted(file.name for file in run.glob("*.png")) == names
    for file in run.glob("*.png"):
        picture = matplotlib.image.imread(file)
        assert min(picture.shape[:2]) > 400
        assert picture[..., :3].std() > 0.05


def test_the_run_says_what_it_does(tiny, tmp_path, capsys):
    train(tiny, tmp_path / "run")
    said = capsys.readouterr().out
    assert "5 x 20 training points (0 repeats)" in said
    assert "solver: 1 V-cycle over 19 > 4 layers, average and midpoint on coarse levels\n" in said
    assert "exact validation accuracy" in said.splitlines()[-2]
    assert str(tmp_path / "run") in said.splitlines()[-1]
    assert "\r" not in said  # no progress bar where there is no terminal


def test_an_earlier_run_is_never_overwritten(run, tiny, capsys):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert main([tiny, "--output.folder", str(run)]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


@pytest.mark.slow
def test_folders_are_named_by_run_and_time(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main([tiny, "--iterations", "1"]) == 0
    names = [folder.name for folder in (tmp_path / "runs").iterdir()]
    assert len(set(names)) == 2
    assert all(name.startswith("tiny-20") for name in names)


@pytest.mark.slow
def test_sequential_training_is_exact_and_many_cycles_reproduce_it(tiny, tmp_path):
    exact = train(tiny, tmp_path / "exact", "--training.method", "sequential")
    cycles = train(tiny, tmp_path / "cycles", "--solver.cycles", "5")
    few = train(tiny, tmp_path / "few")
    evaluated = [row for row in exact if "exact_train_loss" in row]
    np.testing.assert_allclose(
        column(evaluated, "inexact_loss"), column(evaluated, "exact_train_loss"), rtol=1e-12, atol=0
    )
    np.testing.assert_allclose(column(cycles, "grad_norm"), column(exact, "grad_norm"), rtol=1e-10, atol=0)
    assert not np.allclose(column(few, "grad_norm"), column(exact, "grad_norm"), rtol=1e-6, atol=0)


@pytest.mark.slow
def test_predict_then_sweep_trains(tiny, tmp_path):
    rows = train(tiny, tmp_path / "run", "--training.schedule", "predict_then_sweep", "--iterations", "40")
    assert rows[-1]["exact_train_loss"] < 0.9 * rows[0]["exact_train_loss"]


@pytest.mark.slow
def test_penalties_are_in_the_objective(tiny, tmp_path):
    rows = train(tiny, tmp_path / "run", "--penalty.gamma-tik", "0.1", "--iterations", "1")
    params = runs.load_params(tmp_path / "run" / "parameters.npz")
    squares = sum((leaf**2).sum() for leaf in (*params.opening.values(), *params.layers.values()))
    assert rows[-1]["objective"] - rows[-1]["inexact_loss"] == pytest.approx(0.05 * squares, rel=1e-10)


def test_one_compilation_of_the_step(tiny, tmp_path, caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        train(tiny, tmp_path / "run")
    compiled = [record.getMessage() for record in caplog.records if "Finished XLA compilation" in record.getMessage()]
    assert len([message for message in compiled if "jit(step)" in message]) == 1


@pytest.mark.slow
def test_two_devices_give_the_same_metrics(tiny, run, tmp_path):
    command = [sys.executable, "-m", "experiments.train", tiny, "--output.folder", str(tmp_path / "two")]
    assert "2 x cpu (mesh)" in launch.run_all([[*command, "--backend.devices", "2"]])
    one, two = runs.read_metrics(run), runs.read_metrics(tmp_path / "two")
    for key in ("inexact_loss", "grad_norm", "residual_norm", "adjoint_residual_norm"):
        np.testing.assert_allclose(column(two, key), column(one, key), rtol=1e-8, atol=0, err_msg=key)


@pytest.mark.slow
def test_two_mpi_ranks_give_the_same_metrics_and_the_first_writes(tiny, run, tmp_path):
    launch.needs_mpi()
    words = ["-m", "experiments.train", tiny, "--backend.kind", "mpi", "--output.folder", str(tmp_path / "ranks")]
    said = launch.mpirun(2, *words)
    assert "2 x cpu (mpi)" in said
    assert said.count("exact validation accuracy") == 1
    one, two = runs.read_metrics(run), runs.read_metrics(tmp_path / "ranks")
    for key in ("inexact_loss", "grad_norm", "residual_norm", "adjoint_residual_norm"):
        np.testing.assert_allclose(column(two, key), column(one, key), rtol=1e-8, atol=0, err_msg=key)


def test_more_devices_than_there_are_is_refused(tiny, monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    wanted = len(jax.devices()) + 1
    words = ["--network.layers", "400", "--backend.devices", str(wanted)]
    assert main([tiny, *words]) == 2
    assert f"backend.devices = {wanted}: expected at most {wanted - 1}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rate", "what"), [pytest.param("1e9", "inexact_loss = ", marks=pytest.mark.slow), ("1e308", "= nan")]
)
def test_a_training_that_blows_up_stops_with_a_sentence(tiny, tmp_path, capsys, rate, what):
    words = ["--optimizer.name", "sgd", "--optimizer.learning-rate", rate, "--output.folder", str(tmp_path / "run")]
    assert main([tiny, *words, "--recovery.attempts", "0"]) == 1
    said = capsys.readouterr().err
    assert "stopped: iteration" in said
    assert what in said
    assert "Lower optimizer.learning_rate" in said
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "stopped"
    assert not (tmp_path / "run" / "parameters.npz").exists()
    assert len(runs.read_metrics(tmp_path / "run")) <= 7


PUBLISHED = ("--optimizer.name", "published", "--optimizer.memory", "5")


@pytest.mark.slow
def test_the_published_loop_trains_and_tells_of_its_line_searches(tiny, tmp_path):
    rows = train(tiny, tmp_path / "run", *PUBLISHED, "--iterations", "6", "--penalty.gamma-ddt", "1e-5")
    assert rows[-1]["objective"] < rows[0]["objective"]
    assert all(row["trials"] >= 1 and row["outcome"] == jm.Outcome.STEP for row in rows[:-1])
    assert all(row["step_size"] == 2.0 ** (1 - row["trials"]) for row in rows[:-1])


@pytest.mark.slow
def test_the_published_loop_ends_where_the_gradient_is_small(tiny, tmp_path):
    rows = train(tiny, tmp_path / "run", *PUBLISHED, "--optimizer.gtol", "100", "--iterations", "6")
    assert [row["outcome"] for row in rows] == [jm.Outcome.CONVERGED] * 2
    assert "exact_train_loss" in rows[-1]
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert "training ends" in events and "below gtol" in events


@pytest.mark.slow
def test_the_published_loop_goes_on_from_a_checkpoint_as_if_nothing_had_been(tiny, tmp_path):
    words = (*PUBLISHED, "--checkpoints.every", "3")
    whole = train(tiny, tmp_path / "whole", *words, "--iterations", "6")
    train(tiny, tmp_path / "half", *words, "--iterations", "3")
    assert main(["--resume", str(tmp_path / "half"), "--iterations", "6"]) == 0
    rest = runs.read_metrics(tmp_path / "half")
    np.testing.assert_array_equal(column(rest, "objective"), column(whole, "objective"))


@pytest.mark.slow
def test_mesh_independent_training_scales_penalties_and_gradients(tiny, tmp_path):
    words = ("--iterations", "1", "--optimizer.name", "sgd", "--penalty.gamma-tik", "0.1")
    plain = train(tiny, tmp_path / "plain", *words)
    scaled = train(tiny, tmp_path / "scaled", *words, "--training.mesh-independent", "true")
    assert plain[0]["inexact_loss"] == scaled[0]["inexact_loss"]
    assert plain[0]["objective"] > scaled[0]["objective"] > scaled[0]["inexact_loss"]
    moved = []
    for name, row in (("plain", plain), ("scaled", scaled)):
        assert row[-1]["objective"] < row[0]["objective"], name
        moved.append(runs.load_params(tmp_path / name / "parameters.npz").layers["w"])
    assert not np.allclose(*moved, rtol=1e-3)


NESTED = ("--nested.networks", "3", "--nested.factor", "2", "--nested.iterations", "4", "3", "--network.layers", "32")


@pytest.mark.slow
def test_nested_iteration_trains_ever_deeper_networks_from_each_others_parameters(tiny, tmp_path, capsys):
    rows = train(tiny, tmp_path / "run", *NESTED, "--solver.coarsening-factor", "2")
    assert [row["layers"] for row in rows] == [8] * 4 + [16] * 3 + [32] * 7
    assert [row["iteration"] for row in rows] == list(range(14))
    assert "on to 16 layers: it has had its 4 iterations" in capsys.readouterr().out
    losses = column(rows, "inexact_loss")
    # A refined network computes nearly what the shallow one did; where it is new, the loss would be the first.
    for first in (4, 7):
        assert abs(losses[first] - losses[first - 1]) < 0.3 * abs(losses[0] - losses[first - 1])
    assert runs.load_params(tmp_path / "run" / "parameters.npz").layers["w"].shape[0] == 32


@pytest.mark.slow
def test_nested_iteration_goes_on_by_loss_and_resumes_in_the_middle(tiny, tmp_path):
    words = (*NESTED, "--solver.coarsening-factor", "2", "--checkpoints.every", "1", "--nested.loss", "100")
    rows = train(tiny, tmp_path / "whole", *words, "--iterations", "3")
    assert [row["layers"] for row in rows] == [8, 16, 32, 32, 32, 32]
    train(tiny, tmp_path / "half", *words, "--iterations", "1")
    assert main(["--resume", str(tmp_path / "half"), "--iterations", "3"]) == 0
    np.testing.assert_array_equal(column(runs.read_metrics(tmp_path / "half"), "objective"), column(rows, "objective"))
