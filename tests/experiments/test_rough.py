"""Trainings on rough layers, method beside method: what a comparison leaves, and what it refuses."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rough.__main__ import main
from experiments.rough.contraction import law

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
    words = ["--iterations", "12", "--evaluation.every", "6", "--dtype", "float64", "--folder", str(tmp_path / "out")]
    methods = ["sequential", "picard", "control", "average", "injection"]
    assert main([config, *words, "--control.active", "true", "--control.tolerance", "1e-9", "--methods", *methods]) == 0
    runs = {run["method"]: run for run in json.loads((tmp_path / "out" / "trainings.json").read_text())["runs"]}
    points = {method: run["points"] for method, run in runs.items()}
    assert list(points) == methods
    assert [[point["iteration"] for point in of] for of in points.values()] == [[0, 6, 12]] * 5
    assert len({of[0]["exact_train_loss"] for of in points.values()}) == 1
    assert points["picard"][1]["distance"] < 0.5 * points["average"][1]["distance"]
    assert points["picard"][1]["state_factor"] < 0.5 * min(points[m][1]["state_factor"] for m in methods[3:])
    assert 0.2 < points["picard"][0]["law"] / points["picard"][0]["state_factor"] < 5
    assert [(run["sweeps"], run["serial"]) for run in runs.values() if run["method"] != "control"] == [
        (0, 12),
        (1, 0),
        (1, 0),
        (1, 0),
    ]
    # Under an unattainable tolerance: more sweeps, then more cycles, which are three fused sweeps an iteration.
    actions = [event["action"] for event in runs["control"]["events"] if event["action"] != "keep"]
    assert actions == ["picard(2) -> picard(3)", "picard(3) -> 2 cycles with picard(3)"]
    assert runs["control"]["sweeps"] > (10 + 2 * 3) / 12 and runs["control"]["serial"] == 2
    assert not any(run["events"] for method, run in runs.items() if method != "control")
    assert (tmp_path / "out" / "trainings.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "medians of seeds [0]" in said and "law: independent" in said


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


def test_the_law_is_that_of_linear_layers():
    """Increments h u W of independent normal W: each has the norm h strength on the average over directions."""
    layers, width, h, strength = 64, 16, 0.1, 0.5
    random = np.random.default_rng(0)
    theta = jnp.asarray(strength / np.sqrt(width) * random.normal(size=(layers, width, width)))
    states = jnp.asarray(random.normal(size=(layers + 1, 32, width)))
    for sweeps, intervals in ((0, 8), (1, 8), (2, 8), (2, 16)):
        says = law(lambda p, u, h: u + h * u @ p, theta, states, h, sweeps, intervals)
        power, ways = sweeps + 1, math.factorial(sweeps + 1)
        independent = 0.45 * (h * strength * math.sqrt(layers)) ** power / math.sqrt(ways * intervals**sweeps)
        coherent = (h * strength * layers) ** power / (ways * intervals**sweeps)
        np.testing.assert_allclose(says, (independent, coherent), rtol=0.1)
