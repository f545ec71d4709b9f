"""Time to accuracy and scaling: what is compared, what counts as reached, and that the commands leave what they say."""

import json
import math

import pytest

from experiments import scaling, time_to_accuracy
from experiments.config.reader import read
from experiments.time_to_accuracy import Method, train
from experiments.timing import calibrated
from jaxmgrit.analysis.cost_model import Sizes

TINY = "--network.layers 16 --network.width 2 --problem.train-per-class 4 --problem.validation-per-class 4".split()
CONFIG = ["configs/level_sets.yaml", *TINY, "--solver.coarsening-factor", "4", "--optimizer.warmup", "0"]


def config(*more):
    return read([*CONFIG, "--iterations", "12", "--evaluation.every", "3", *more], "a test")


@pytest.mark.slow
def test_a_target_is_reached_where_it_first_held():
    curve = train({}, config(), target=1e-9, hold=3)
    assert [point[0] for point in curve.points] == [0, 3, 6, 9]
    assert curve.reached == 1
    assert curve.iterations == 3
    assert curve.seconds == curve.points[1][1] > 0


@pytest.mark.slow
def test_a_target_that_is_never_reached_takes_for_ever():
    curve = train({}, config(), target=1.0, hold=5)
    assert curve.reached is None
    assert math.isinf(curve.seconds)
    assert curve.points[-1][0] == 12


def test_methods_differ_in_method_and_devices_only_and_sequential_training_does_not_anticipate():
    own = config()
    one_shot = Method("one-shot", "one_shot", 2, 2).config(own, 0.5, 7)
    assert (one_shot.seed, one_shot.optimizer.learning_rate, one_shot.backend.devices) == (7, 0.5, 2)
    assert one_shot.optimizer.anticipate == own.optimizer.anticipate > 0
    assert Method("ranks", "one_shot", 2, 2, mpi=True).config(own, 0.5, 7).backend.kind == "mpi"
    sequential = Method("sequential", "sequential", 1, 1).config(own, 0.5, 7)
    assert (sequential.training.method, sequential.optimizer.anticipate) == ("sequential", 0.0)
    assert sequential.network == one_shot.network == own.network


def test_weak_scaling_keeps_the_step_size():
    own = config()
    larger = scaling.with_layers(own, 64, 2)
    assert larger.network.final_time / 64 == own.network.final_time / 16
    assert (larger.backend.kind, larger.backend.devices) == ("mesh", 2)


def test_a_split_batch_costs_a_share_and_an_all_reduce_of_the_gradients():
    sizes = Sizes(state=8, layer=100, number=4)
    known = calibrated.Calibration({}, (0.0, 0.0), 1.0, (1e-3, 1e-6), sizes, None)
    assert scaling.split(known, 10, 1, 2.0) == 2.0
    # Two levels of a tree up and two down, and 1000 bytes of parameters each way.
    assert scaling.split(known, 10, 4, 2.0) == pytest.approx(2.0 + 2 * (2 * 1e-3 + 1e-3))


@pytest.mark.parametrize("command", [scaling.main, time_to_accuracy.main])
def test_sequential_configs_and_unknown_keys_are_refused(command, capsys, tmp_path):
    assert command([CONFIG[0], "--training.method", "sequential", "--folder", str(tmp_path)]) == 2
    assert "expected one_shot" in capsys.readouterr().err
    assert command([*CONFIG, "--network.layer", "3", "--folder", str(tmp_path)]) == 2
    assert "Did you mean --network.layers" in capsys.readouterr().err


@pytest.mark.slow
def test_time_to_accuracy_leaves_its_runs_and_a_picture(tmp_path, capsys):
    options = ["--target", "0.01", "--hold", "1", "--seeds", "0", "--rates", "0.02", "--folder", str(tmp_path)]
    assert time_to_accuracy.main([*CONFIG, *options, "--iterations", "4", "--evaluation.every", "2"]) == 0
    runs = json.loads((tmp_path / "times.json").read_text())["runs"]
    assert [run["method"] for run in runs] == [method.name for method in time_to_accuracy.methods()]
    assert (tmp_path / "accuracy.png").stat().st_size > 0
    assert "one-shot, 1 device" in capsys.readouterr().out


@pytest.mark.slow
def test_scaling_is_measured_where_there_are_cores_and_modelled_everywhere(tmp_path):
    assert scaling.main([*CONFIG, "--folder", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "scaling.json").read_text())
    assert [row["devices"] for row in found["strong"]] == [1, 2, 4]
    assert all(row["modelled"] > 0 for row in found["strong"])
    assert found["strong"][0]["measured"] > 0
    assert all(row["data_parallel"] > 0 for row in found["strong"])
    assert (tmp_path / "scaling.png").stat().st_size > 0
