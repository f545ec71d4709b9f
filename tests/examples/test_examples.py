"""Every example runs in its reduced form and does what its page says; the docs know them all."""

import importlib
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if path.stem not in ("__init__", "common"))


def quick(name):
    """What an example returns, with JAX's own defaults."""
    if name in ("character_transformer", "resnet_stages"):
        pytest.importorskip("flax", reason="pip install -e '.[adapters]'")
        pytest.importorskip("equinox", reason="pip install -e '.[adapters]'")
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return importlib.import_module(f"examples.{name}").main(["--quick"])


@pytest.mark.slow
def test_the_pendulum_ends_upright_and_residuals_fall_by_two_digits_per_cycle():
    angle, speed, factors = quick("pendulum")
    assert abs(angle) < 0.06 and abs(speed) < 0.1 and factors[0] < 1e-2


@pytest.mark.slow
def test_newton_reaches_the_accuracy_of_the_scan():
    accuracy = quick("pixel_recurrence")
    assert abs(accuracy["Newton"] - accuracy["scan"]) <= 0.051 and "scan, GRU" in accuracy


@pytest.mark.slow
def test_stages_by_propagate_have_the_loss_of_plain_scans():
    accuracy, difference = quick("resnet_stages")
    assert 0 <= accuracy <= 1 and difference < 1e-4


@pytest.mark.slow
def test_one_shot_training_of_the_transformer_tracks_the_sequential_one():
    losses = quick("character_transformer")
    assert abs(losses["one-shot"] / losses["sequential"] - 1) < 0.01


@pytest.mark.slow
def test_one_shot_training_of_the_neural_ode_tracks_the_sequential_one():
    losses = quick("neural_ode")
    assert abs(losses["one-shot"] / losses["sequential"] - 1) < 0.1


def test_every_example_is_one_page_with_its_results():
    page = (ROOT / "docs" / "results" / "examples.md").read_text(encoding="utf-8")
    assert len(EXAMPLES) == 5
    for name in EXAMPLES:
        assert f"python -m examples.{name}" in page
        assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) <= 135
