"""Numbers to be predicted, from a file: read, scaled, learned, and given back in their own units."""

import csv
import json
from shutil import copytree

import jax
import numpy as np
import pytest

from experiments import evaluate, predict, problems
from experiments.errors import ConfigError
from experiments.problems.file import File, Own
from experiments.problems.points import data as points_data
from experiments.train import main

CONFIG = """
iterations: 80
dtype: float64
problem: {{name: file, file: "{folder}/points.csv", inputs: [a, b], targets: [volume, mass]}}
network: {{layers: 8, width: 6}}
optimizer: {{learning_rate: 0.05}}
training: {{schedule: predict_then_sweep}}
solver: {{coarsening_factor: 4, levels: 2, coarse_params: average, coarse_step: midpoint}}
evaluation: {{every: 40, early: true, gradient: true}}
"""


def values(x):
    """Of the two targets: smooth in the inputs, in quite different units."""
    return np.stack([1000 + 50 * np.tanh(x[:, 0] - x[:, 1]), 1e-3 * (x[:, 0] + x[:, 1])], axis=-1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run, and its folder's parent with the files."""
    folder = tmp_path_factory.mktemp("targets")
    x = np.random.default_rng(0).normal(size=(200, 2))
    with (folder / "points.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "remark", "mass", "b", "volume"])
        writer.writerows([a, "-", m, b, v] for (a, b), (v, m) in zip(x, values(x), strict=True))
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder))
    before = jax.config.jax_enable_x64
    assert main([str(folder / "config.yaml"), "--output.folder", str(folder / "run")]) == 0
    yield folder / "run"
    jax.config.update("jax_enable_x64", before)


@pytest.mark.slow
def test_targets_are_learned_and_accuracy_is_the_variance_that_is_explained(run):
    summary = json.loads((run / "summary.json").read_text())
    assert 0.9 < summary["exact_validation_accuracy"] < 1
    # Of scaled targets, as the loss is their mean squared error.
    assert summary["exact_train_accuracy"] == pytest.approx(1 - summary["exact_train_loss"])
    assert {file.name for file in run.glob("*.png")} == {"predictions.png", "residuals.png", "training.png"}
    assert "loss: squared_error" in (run / "config.yaml").read_text()


def test_early_evaluations_and_the_gradients_errors_are_in_the_rows(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    exact = [row["iteration"] for row in rows if "exact_train_loss" in row]
    assert exact == [0, 1, 2, 5, 10, 20, 40, 80]
    assert [row["iteration"] for row in rows if "gradient_error" in row] == exact[1:]
    assert all(
        0 < row["gradient_error"] < 1 and row["gradient_cosine"] > 0.5 for row in rows if "gradient_error" in row
    )
    assert all(0 < row["mismatch"] < 1 for row in rows)


def test_predictions_are_in_the_targets_own_units(run, capsys):
    x = np.random.default_rng(1).normal(size=(50, 2))
    lines = ["b,a", *(f"{b},{a}" for a, b in x)]
    (run.parent / "new.csv").write_text("\n".join(lines) + "\n")
    assert predict.main([str(run), "--input", str(run.parent / "new.csv")]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == "point,volume,mass"
    predicted = np.array([[float(word) for word in row.split(",")[1:]] for row in rows])
    explained = 1 - np.mean((predicted - values(x)) ** 2, axis=0) / np.var(values(x), axis=0)
    assert explained.min() > 0.8


@pytest.mark.slow
def test_a_training_of_numbers_is_evaluated_and_goes_on(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    copytree(run, copy)
    assert evaluate.main([str(copy)]) == 0
    summary, report = (json.loads((copy / f"{name}.json").read_text()) for name in ("summary", "evaluation"))
    assert report["splits"][1]["exact_accuracy"] == pytest.approx(summary["exact_validation_accuracy"])
    assert main(["--resume", str(copy), "--iterations", "82", "--output.pictures", "false"]) == 0
    assert "going on from iteration 80" in capsys.readouterr().out
    # Other targets are another training, however little they differ.
    words = (run.parent / "points.csv").read_text().splitlines()
    line = words[1].split(",")
    words[1] = ",".join([*line[:-1], str(float(line[-1]) + 1e-6)])
    (tmp_path / "other.csv").write_text("\n".join(words) + "\n")
    assert main(["--resume", str(copy), "--problem.file", str(tmp_path / "other.csv")]) == 2
    assert "checksum" in capsys.readouterr().err


def test_arrays_have_targets_of_one_or_several_columns(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 3))
    np.savez(tmp_path / "p.npz", x=x, t=values(x))
    loaded = problems.load(File(name="file", file=str(tmp_path / "p.npz"), targets=["t"]), 0)
    assert (loaded.names, loaded.train.y.shape, loaded.validation.y.shape) == (("t[0]", "t[1]"), (16, 2), (4, 2))
    np.testing.assert_allclose(loaded.train.y.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(loaded.train.y.std(axis=0), 1)
    back = np.concatenate([loaded.train.y, loaded.validation.y]) * loaded.scale.deviation + loaded.scale.mean
    np.testing.assert_allclose(np.sort(back, axis=0), np.sort(values(x), axis=0))
    alone = points_data((x, x[:, 0]), (x, x[:, 1]), 0.0, False, "here", 0, targets=["first"])
    assert alone.names == ("first",) and alone.train.y.shape == (20, 1)


@pytest.mark.parametrize(
    ("y", "targets", "says"),
    [
        (np.ones(4), ["t"], "expected a target that varies, but t is the same"),
        (np.array([1.0, np.nan, 2.0, 3.0]), ["t"], "expected finite targets, found .*nan.* of point 1"),
        (np.array(list("abcd")), ["t"], "expected targets that are numbers"),
        (np.ones((4, 3)), ["t", "s"], "expected 3 names, or one for all"),
        (np.arange(4.0) + 0.5, None, "Numbers to be predicted are named by problem.targets"),
    ],
)
def test_what_is_no_target_is_refused(y, targets, says):
    x = np.arange(8.0).reshape(4, 2)
    with pytest.raises(ConfigError, match=says):
        points_data((x, y), (x, y), 0.0, False, "here", 0, targets=targets)


def test_losses_are_for_classes_or_for_numbers(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    for problem, loss in (
        ("name: level_sets", "squared_error"),
        ("name: file, file: x.csv, targets: [t]", "cross_entropy"),
    ):
        file.write_text(f"problem: {{{problem}}}\ntraining: {{loss: {loss}}}\n")
        assert main([str(file)]) == 2
        assert f"training.loss = '{loss}': expected another" in capsys.readouterr().err
    assert Own(name="function", function="m:f", targets=["t"]).targets == ["t"]
