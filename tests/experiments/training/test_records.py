"""The gap between what training sees and the exact network: said where it is there, never where it is chance."""

import json

import jax
import numpy as np
import pytest

from experiments.train import main
from experiments.training.records import Gap


def rows(seen, exact, every=10, count=200):
    """Rows of a training whose figures are drawn around the given accuracies."""
    for i in range(count):
        row = {"iteration": i, "inexact_accuracy": seen(), "inexact_loss": 0.3}
        yield row | ({"exact_train_accuracy": exact(), "exact_train_loss": 0.3} if i % every == 0 else {})


@pytest.mark.parametrize("batch", [16, 256])
@pytest.mark.parametrize("accuracy", [0.3, 0.8, 0.99])
def test_chance_says_nothing(batch, accuracy):
    random = np.random.default_rng(0)
    for _ in range(20):
        gap = Gap(batch, 500)
        drawn = rows(lambda: random.binomial(batch, accuracy) / batch, lambda: random.binomial(500, accuracy) / 500)
        assert not any(gap.sentence(row) for row in drawn)


@pytest.mark.parametrize(("batch", "at"), [(100, 20), (None, 10)])
def test_a_gap_is_said_once_with_a_remedy(batch, at):
    gap = Gap(batch, 500)
    said = {row["iteration"]: gap.sentence(row) for row in rows(lambda: 0.859, lambda: 0.6)}
    assert [i for i, sentence in said.items() if sentence] == [at]
    assert "85.9%" in said[at] and "60.0%" in said[at] and "--control.active true" in said[at]


def test_a_loss_that_is_another_is_a_gap():
    gap = Gap(None, 500)
    row = {"inexact_loss": 0.2, "inexact_accuracy": 0.9, "exact_train_loss": 1.0, "exact_train_accuracy": 0.9}
    assert not gap.sentence(row | {"iteration": 0}) and gap.sentence(row | {"iteration": 5})


def test_a_training_that_lies_says_so(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(
        "iterations: 60\nproblem: {name: level_sets, train_per_class: 30, validation_per_class: 10}\n"
        "network: {layers: 32, width: 6, initialisation: independent, final_time: 20.0}\n"
        "optimizer: {learning_rate: 0.02}\ntraining: {schedule: predict_then_sweep, start: cold, batch_size: 150}\n"
        "solver: {coarsening_factor: 8, levels: 2, coarse_params: average, coarse_step: midpoint}\n"
        "evaluation: {every: 10}\n"
        "output: {pictures: false}\n"
    )
    before = jax.config.jax_enable_x64
    assert main([str(tmp_path / "c.yaml"), "--output.folder", str(tmp_path / "run")]) == 0
    jax.config.update("jax_enable_x64", before)
    (event,) = map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())
    assert event["action"] == "warning" and "the solver is too inexact for these layers" in capsys.readouterr().out
