"""The benchmark and the plan: what they refuse, and that their figures are what they say."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import jaxmgrit as jm
from experiments import benchmark, plan
from experiments.config.reader import read
from experiments.timing import calibrated
from experiments.timing.contenders import Case, contenders
from experiments.timing.devices import Devices
from jaxmgrit.analysis.cost_model import Costs, Counts, Sizes, iteration_counts, total


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--factor", "1"], "--factor 1: expected at least 2"),
        (["--layers", "16", "--factor", "16"], "less than --layers 16"),
        (["--layers", "64", "--kept", "16", "64"], "--kept 64: expected less than --layers 64"),
        (["--devices", "2"], "expected 1 among them"),
        (["--devices", "1", "100000"], "the cores this process may use"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(arguments, message, capsys):
    assert benchmark.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--devices", "0"], ["--latency", "-1"]])
def test_the_plan_refuses_numbers_that_are_none(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        plan.main(["configs/level_sets.yaml", *arguments])
    assert "expected" in capsys.readouterr().err


def test_the_plan_of_a_sequential_training_is_refused(capsys):
    assert plan.main(["configs/level_sets.yaml", "--training.method", "sequential"]) == 2
    assert "expected one_shot" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["batch_first", "width_first"])
@pytest.mark.parametrize("devices", [1, 2])
def test_all_programs_find_the_same_gradient(layout, devices):
    case = Case(layers=32, width=3, batch=4, dtype="float32", factor=8, independent=True, sweeps=(2,), kept=(8,))
    exact = None
    for contender in contenders(case, (layout,), Devices(devices)):
        if "unroll" in contender.name:
            continue
        program = contender.build()
        state, step = program.state, jax.jit(program.step)
        for _ in range(6):  # until the cycles are exact
            state, _ = step(state, program.batch)
        found = np.concatenate([np.ravel(x) for x in jax.tree.leaves(program.gradient(state))])
        exact = found if exact is None else exact
        np.testing.assert_allclose(found, exact, rtol=0, atol=2e-5 * np.abs(exact).max(), err_msg=contender.name)


@pytest.mark.slow
def test_a_benchmark_leaves_a_table_and_a_file(tmp_path, capsys):
    file = tmp_path / "found.json"
    small = ["--layers", "32", "--width", "2", "--batch", "2", "--factor", "8", "--layouts", "batch_first"]
    assert benchmark.main([*small, "--repeats", "2", "--only", "predict", "--json", str(file), "--sweeps", "1"]) == 0
    (case,) = json.loads(file.read_text())["cases"]
    tuned = min(row["milliseconds"] for row in case["programs"] if row["kind"] == "sequential")
    assert case["tuned"]["milliseconds"] == tuned
    for row in case["programs"]:
        assert row["ratio"] == pytest.approx(row["milliseconds"] / tuned)
        assert row["gradient_error"] < 1e-2
        assert row["timed"] == 2
    for row in case["programs"]:
        if row["predicted_milliseconds"]:
            assert sum(map(sum, row["predicted_parts"])) == pytest.approx(row["predicted_milliseconds"])
    assert any(row["predicted_milliseconds"] for row in case["programs"] if row["kind"] == "one-shot")
    assert "predict, then sweep" in capsys.readouterr().out


def test_seconds_are_counts_times_costs():
    costs = Costs(1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 7.0, 70.0, message=1e6, byte=1e8, coarse=2.0)
    counts = Counts(phi=1, grad=2, serial_vjp=3, sends=1, sums=1, bytes=5)
    assert costs.seconds((counts,)) == 1 + 200 + 3e4 + 2e6 + 5e8
    coarse = Counts(phi=1, vjp=1, serial_phi=2, serial_vjp=3)
    assert costs.seconds((counts, coarse)) == costs.seconds((counts,)) + 2 * (1 + 10) + 2 * 7 + 3 * 70


def test_the_predicted_time_of_an_iteration_is_that_of_its_counts():
    config = read(["configs/level_sets.yaml", "--network.layers", "256"], "experiments.plan")
    state = jax.ShapeDtypeStruct((5000, 8), np.float32)
    swept = {1: (1e-6, 2e-6, 4e-6)}
    known = calibrated.Calibration(swept, (3e-6, 5e-6), 1e-2, (1e-5, 1e-10), Sizes(160000, 288, 4), state)
    solver = jm.MGRIT(8, levels=2, coarse_params=jm.average, coarse_step=jm.midpoint)
    predict, sweep = map(total, iteration_counts(jm.PredictThenSweep(), 256, solver, solver))
    assert (predict.serial_phi, sweep.phi, sweep.grad, sweep.serial_vjp) == (32, 256, 256, 32)
    by_hand = 32 * 3e-6 + 256 * 5e-6 + 32 * (3e-6 + 5e-6)
    assert known.seconds(config, solver, 1) == pytest.approx(by_hand)
    # A step that keeps all layers has the time of as many as it keeps.
    by_layers = dataclasses.replace(known, kept={8: (6e-6, 1e-5), 32: (1.0, 1.0)})
    assert by_layers.seconds(config, solver, 1) == pytest.approx(by_hand + 32 * 3e-6 + 32 * (3e-6 + 5e-6))
    assert known.seconds(config, solver, 4) < known.seconds(config, solver, 1)
    with pytest.raises(ValueError, match="devices"):
        known.seconds(config, solver, 64)
