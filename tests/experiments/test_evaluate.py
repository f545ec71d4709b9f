"""Evaluating a run's network afterwards: the figures of the run itself, on any devices, of any checkpoint."""

import json

import jax
import numpy as np
import pytest

from experiments import config, problems
from experiments.evaluate import main
from experiments.runs import folder as runs
from experiments.train import main as train
from experiments.training import build, evaluation

TINY = """
dtype: float64
iterations: 6
problem: {name: level_sets, train_per_class: 12, validation_per_class: 6}
network: {layers: 19, width: 4}
solver: {coarsening_factor: 4, cycles: 1}
checkpoints: {every: 3}
output: {pictures: false}
"""


@pytest.fixture(autouse=True, scope="module")
def _precision():
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    (place / "tiny.yaml").write_text(TINY)
    assert train([str(place / "tiny.yaml"), "--output.folder", str(place / "run")]) == 0
    return place / "run"


def evaluated(run, *words):
    assert main([str(run), *words]) == 0
    return json.loads((run / "evaluation.json").read_text())


@pytest.mark.parametrize("words", [(), pytest.param(("--backend.devices", "2"), marks=pytest.mark.slow)])
def test_exact_figures_are_those_of_the_run(words, run, capsys):
    found, summary = evaluated(run, *words), json.loads((run / "summary.json").read_text())
    assert found["iteration"] == 6
    for row in found["splits"]:
        for figure in ("loss", "accuracy"):
            assert row[f"exact_{figure}"] == pytest.approx(summary[f"exact_{row['split']}_{figure}"], rel=1e-12)
        assert row["inexact_loss"] != row["exact_loss"]
        assert row["inexact_loss"] == pytest.approx(row["exact_loss"], rel=0.2)
    assert [row["split"] for row in found["splits"]] == ["train", "validation"]
    assert "exact acc." in capsys.readouterr().out


def test_a_checkpoint_and_one_split(run):
    found = evaluated(run, "--split", "validation", "--iteration", "0")
    (row,) = found["splits"]
    assert row["exact_loss"] == pytest.approx(runs.read_metrics(run)[0]["exact_validation_loss"], rel=1e-12)


def test_the_network_in_a_program_of_ones_own(run):
    settings = config.read([str(run / "config.yaml")], "experiments.train")
    params = runs.load_params(run / "parameters.npz")
    x, y = problems.load(settings.problem, settings.seed).validation
    classes = evaluation.predict(build.problem(settings), params, x, settings.dtype)
    summary = json.loads((run / "summary.json").read_text())
    assert np.mean(classes == y) == pytest.approx(summary["exact_validation_accuracy"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--iteration", "4"], "--iteration 4: expected that of a checkpoint in "),
        (["--iterations", "4"], "--iterations: unknown option here"),
        (["--iteration", "\u0664"], "expected an integer >= 0"),
        (["--split", "test"], "invalid choice: 'test'"),
        (["--backend.devices", "0"], "backend.devices = 0: expected an integer >= 1"),
    ],
)
def test_wrong_words_are_refused(words, message, run, capsys):
    assert main([str(run), *words]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "expected the folder of a run, with its config.yaml" in capsys.readouterr().err
