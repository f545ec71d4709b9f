"""Trainings under control: networks on which one cycle fails, and one on which it does well."""

import functools
import json

import jax
import pytest

from experiments.train import main

pytestmark = pytest.mark.slow
HARD = """
dtype: float32
iterations: 120
problem: {name: level_sets, train_per_class: 30, validation_per_class: 10}
network: {layers: 64, width: 6}
optimizer: {learning_rate: 0.01, schedule: cosine}
solver: {coarsening_factor: 4, cycles: 1}
evaluation: {every: 400}
output: {pictures: false}
"""
DEFEATING = {
    "rough in depth, large T": "--network.initialisation independent --network.final-time 20",
    "rough in depth, large weights": "--network.initialisation independent --network.scale 3",
    "large T": "--network.initialisation interpolated --network.final-time 60 --iterations 400",
    "learning rate too high": "--optimizer.learning-rate 0.1 --iterations 200",
}


@pytest.fixture(autouse=True)
def _precision():
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """From words of the command line to (exact final loss, decisions); the same words train once."""
    file = tmp_path_factory.mktemp("config") / "hard.yaml"
    file.write_text(HARD)

    @functools.cache
    def run(*words):
        folder = tmp_path_factory.mktemp("runs") / "run"
        assert main([str(file), "--output.folder", str(folder), *words]) == 0
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        return json.loads((folder / "summary.json").read_text())["exact_train_loss"], events

    return run


@pytest.mark.parametrize("case", ["rough in depth, large T", "large T", "learning rate too high"])
def test_control_reaches_the_sequential_loss_where_one_cycle_fails(case, train, capsys):
    words = DEFEATING[case].split()
    sequential, _ = train(*words, "--training.method", "sequential")
    fixed, _ = train(*words)
    controlled, events = train(*words, "--control.active", "true")
    with capsys.disabled():
        print(f"\n{case}: exact loss {sequential:.3f} sequential, {fixed:.3f} one cycle, {controlled:.3f} controlled")
    assert fixed > 1.05 * sequential, "one cycle does not fail here"
    assert controlled <= 1.05 * sequential
    said = capsys.readouterr().out
    changes = [event for event in events if event["action"] != "keep"]
    assert changes[0]["iteration"] == 0
    assert all(event["reason"] for event in changes)
    assert f"iteration 0: {changes[0]['action']}: {changes[0]['reason']}" in said


ADDED = 2  # sweeps of a comparison, and of the right-hand sides' adaptation to another number of Picard sweeps
ROUGH = "--solver.coarse-params all_layers --solver.coarse-step picard --solver.coarsening-factor 8 --solver.levels 2"
ROUGH += " --training.schedule predict_then_sweep"


def test_on_rough_layers_more_sweeps_reach_the_sequential_loss(train, capsys):
    case = "rough in depth, large weights"
    words = DEFEATING[case].split()
    sequential, _ = train(*words, "--training.method", "sequential")
    controlled, events = train(*words, *ROUGH.split(), "--control.active", "true")
    serial = [event for event in events if event["action"].endswith("sequential sweeps")]
    assert 120 + added(events) <= 1.5 * 120
    with capsys.disabled():
        print(
            f"\n{case}: exact loss {sequential:.3f} sequential, {controlled:.3f} controlled; {len(serial)} times serial"
        )
    assert controlled <= 1.05 * sequential
    assert not serial


def added(events):
    """Fused sweeps that control has added to one an iteration."""
    return ADDED * sum(("distance" in event) + (event["action"] != "keep") for event in events)


def test_an_easy_network_keeps_its_sweeps_for_one_comparison(train):
    words = ["--network.final-time", "1", "--optimizer.learning-rate", "0.04", *ROUGH.split()]
    fixed, _ = train(*words)
    controlled, events = train(*words, "--control.active", "true")
    assert controlled == fixed
    assert 120 + added(events) <= 1.05 * 120


def test_where_no_number_of_sweeps_helps_control_goes_serial_and_says_why(train):
    """Of T = 60 the first 30 iterations."""
    words = DEFEATING["large T"].replace("400", "30").split()
    _, events = train(*words, *ROUGH.split(), "--control.active", "true")
    changes = [event for event in events if event["action"] != "keep"]
    assert [event["action"].split(" -> ")[0] for event in changes] == ["picard(2)", "picard(3)", "picard(4)"]
    assert changes[-1]["action"].endswith("sequential sweeps")
    assert "a cycle with picard(4) leaves" in changes[-1]["reason"]


def test_an_easy_network_keeps_its_one_cycle(train):
    words = ["--network.final-time", "1"]
    fixed, _ = train(*words)
    controlled, events = train(*words, "--control.active", "true")
    assert controlled == fixed
    assert [event["action"] for event in events] == ["keep"] * 4
    assert [event["iteration"] for event in events] == [0, 10, 30, 70]


def test_predicting_and_sweeping_is_left_for_cycles_or_sequential_sweeps_where_it_fails(train):
    words = DEFEATING["rough in depth, large T"].split()
    sequential, _ = train(*words, "--training.method", "sequential")
    predicted = ["--training.schedule", "predict_then_sweep", "--solver.levels", "2", "--control.active", "true"]
    controlled, events = train(*words, *predicted)
    assert events[0]["action"].startswith("predict, then sweep -> ")
    assert controlled <= 1.05 * sequential
