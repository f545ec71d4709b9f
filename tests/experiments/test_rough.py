"""Trainings on rough layers, method beside method: what a comparison leaves, and what it refuses."""

import json

import pytest

from experiments.rough.__main__ import main

CONFIG = """
problem: {name: level_sets, train_per_class: 6, validation_per_class: 4}
network: {layers: 12, width: 3, initialisation: independent}
training: {schedule: predict_then_sweep}
solver: {coarsening_factor: 4, levels: 2, coarse_params: all_layers, coarse_step: picard}
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "rough.yaml").write_text(CONFIG)
    return str(tmp_path / "rough.yaml")


@pytest.mark.slow
def test_methods_start_alike_and_sweeps_come_nearer_to_the_exact_gradient(config, tmp_path, capsys):
    words = ["--iterations", "4", "--evaluation.every", "2", "--dtype", "float64", "--folder", str(tmp_path / "out")]
    assert main([config, *words]) == 0
    runs = json.loads((tmp_path / "out" / "trainings.json").read_text())["runs"]
    points = {run["method"]: run["points"] for run in runs}
    assert list(points) == ["sequential", "picard", "average"]
    assert [[point["iteration"] for point in of] for of in points.values()] == [[0, 2, 4]] * 3
    assert len({of[0]["exact_train_loss"] for of in points.values()}) == 1
    assert points["picard"][1]["distance"] < 0.5 * points["average"][1]["distance"]
    assert (tmp_path / "out" / "trainings.png").read_bytes().startswith(b"\x89PNG")
    assert "medians of seeds [0]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--training.method sequential", "expected a one-shot training"),
        ("--seed_s 1", "--seed-s: unknown option. Did you mean --seeds"),
        ("--folder rough.yaml/below", "--folder rough.yaml/below: cannot be made"),
    ],
)
def test_what_cannot_be_compared_is_refused(words, message, config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([config, *words.split()]) == 2
    assert message in capsys.readouterr().err
