"""Runs that are interrupted, crash, meet a full disk, damaged checkpoints or nonsense, and go on."""

import fcntl
import json
import os
import resource
import shutil
import signal

import jax
import numpy as np
import pytest

from experiments import problems
from experiments.config.reader import read_run
from experiments.runs import folder as runs
from experiments.runs import recorder
from experiments.runs.binding import Binding
from experiments.runs.checkpoints import Checkpoints
from experiments.train import main
from experiments.training.loop import Loop

TINY = """
name: tiny
dtype: float64
iterations: 14
problem: {name: level_sets, train_per_class: 20, validation_per_class: 10}
network: {layers: 19, width: 4}
optimizer: {learning_rate: 0.02, schedule: cosine, anticipate: 0.1}
training: {schedule: predict_then_sweep}
solver: {coarsening_factor: 4, levels: 2, coarse_params: average, coarse_step: midpoint}
evaluation: {every: 5}
checkpoints: {every: 4}
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


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    before = jax.config.jax_enable_x64
    assert main([tiny, "--output.folder", str(folder)]) == 0
    jax.config.update("jax_enable_x64", before)
    return folder


@pytest.fixture
def copy(undisturbed, tmp_path):
    """The undisturbed run as if it had crashed at its end: its last lines half written, its results not."""
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed, folder)
    for name in ("parameters.npz", "summary.json"):
        (folder / name).unlink()
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"iteration": 15, "inexact_l')
    return folder


def rows(folder):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in runs.read_metrics(folder)]


def assert_same(folder, undisturbed):
    assert rows(folder) == rows(undisturbed)
    a, b = (np.load(run / "parameters.npz") for run in (folder, undisturbed))
    for name in b.files:
        np.testing.assert_array_equal(a[name], b[name])
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"


def at_iteration(monkeypatch, iteration, act):
    """Call `act` when the row of an iteration has been written."""
    plain = recorder.Recorder.row

    def row(self, row):
        plain(self, row)
        if row["iteration"] == iteration:
            act()

    monkeypatch.setattr(recorder.Recorder, "row", row)


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_run_with_a_checkpoint_and_resuming_repeats_nothing(
    number, code, tiny, undisturbed, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"
    at_iteration(monkeypatch, 6, lambda: os.kill(os.getpid(), number))
    assert main([tiny, "--output.folder", str(folder)]) == code
    said = capsys.readouterr().err
    assert f"interrupted by {number.name} at iteration 7; go on with:" in said
    assert f"python -m experiments.train --resume {folder}" in said
    assert checkpoints(folder) == ["00000000", "00000004", "00000007"]
    assert signal.getsignal(number) is not None
    monkeypatch.undo()
    assert main(["--resume", str(folder)]) == 0
    assert "going on from iteration 7" in capsys.readouterr().out
    assert_same(folder, undisturbed)
    assert checkpoints(folder) == ["00000008", "00000012", "00000014"]


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(tiny, tmp_path, monkeypatch, capsys):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_iteration(monkeypatch, 6, twice)
    assert main([tiny, "--output.folder", str(tmp_path / "run")]) == 130
    assert "interrupted at once; from the last checkpoint, go on with" in capsys.readouterr().err
    assert checkpoints(tmp_path / "run") == ["00000000", "00000004"]


def cut_short(path):
    data = (path / "state.safetensors").read_bytes()
    (path / "state.safetensors").write_bytes(data[: len(data) // 2])


def flip(name, where):
    def change(path):
        data = bytearray((path / name).read_bytes())
        data[int(where * len(data))] ^= 4
        (path / name).write_bytes(data)

    return change


def foreign(path):
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["format"] = 99
    (path / "manifest.json").write_text(json.dumps(manifest))


DAMAGES = {
    "truncated": (cut_short, "state.safetensors has"),
    "bit flipped in the arrays": (
        flip("state.safetensors", 0.7),
        "state.safetensors is damaged: its",
    ),
    "bit flipped in the manifest": (flip("manifest.json", 0.5), "manifest.json is damaged"),
    "no arrays": (lambda path: (path / "state.safetensors").unlink(), "state.safetensors cannot be read: No such file"),
    "empty manifest": (
        lambda path: (path / "manifest.json").write_text(""),
        "manifest.json is damaged: it is not JSON",
    ),
    "another format": (foreign, "manifest.json has format 99, but this version reads 1"),
}


@pytest.fixture(scope="module")
def opened(undisturbed):
    """From a run's folder to what `--resume` finds in it: (checkpoint, reasons)."""
    config, _ = read_run(["--resume", str(undisturbed)], "experiments.train")
    data = problems.load(config.problem, config.seed)
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    like = Loop(config, data).like({}, 0)
    jax.config.update("jax_enable_x64", before)
    return lambda folder: Checkpoints(folder, 3, Binding(config, data)).latest(lambda loop, iteration: like)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(damage, copy, opened):
    act, reason = DAMAGES[damage]
    act(copy / "checkpoints" / "00000014")
    checkpoint, (refused,) = opened(copy)
    assert refused.startswith(f"{copy / 'checkpoints' / '00000014'}: {reason}")
    assert checkpoint.snapshot.iteration == 12


def test_a_renamed_checkpoint_is_not_taken_for_another_iterations(copy, opened):
    (copy / "checkpoints" / "00000012").rename(copy / "checkpoints" / "00000015")
    checkpoint, (refused,) = opened(copy)
    assert refused.endswith("00000015: it is the checkpoint of iteration 12")
    assert checkpoint.snapshot.iteration == 14


def test_a_run_goes_on_from_the_last_checkpoint_that_is_whole_and_sets_the_others_aside(copy, undisturbed, capsys):
    shutil.rmtree(copy / "checkpoints" / "00000014")
    cut_short(copy / "checkpoints" / "00000012")
    assert main(["--resume", str(copy)]) == 0
    said = capsys.readouterr().out
    assert f"not used: {copy / 'checkpoints' / '00000012'}: state.safetensors has" in said
    assert "going on from iteration 8" in said
    assert_same(copy, undisturbed)
    assert [name for name in checkpoints(copy) if name.isdigit()] == ["00000008", "00000012", "00000014"]
    assert any(name.startswith("refused-00000012") for name in checkpoints(copy))


@pytest.mark.slow
def test_anothers_checkpoint_is_refused_by_the_key_that_differs(copy, tiny, undisturbed, tmp_path, capsys):
    other = tmp_path / "other"
    words = ["--optimizer.learning-rate", "0.03", "--output.folder", str(other)]
    assert main([tiny, *words]) == 0
    shutil.rmtree(copy / "checkpoints" / "00000014")
    shutil.copytree(other / "checkpoints" / "00000014", copy / "checkpoints" / "00000014")
    assert main(["--resume", str(copy)]) == 0
    said = capsys.readouterr().out
    assert "it belongs to another training: optimizer.learning_rate was 0.03, now it is 0.02" in said
    assert_same(copy, undisturbed)


def test_where_no_checkpoint_can_be_used_nothing_is_overwritten(copy, capsys):
    for path in (copy / "checkpoints").iterdir():
        cut_short(path)
    before = (copy / "metrics.jsonl").read_bytes()
    assert main(["--resume", str(copy)]) == 2
    said = capsys.readouterr().err
    assert said.count("state.safetensors has") == 3
    assert "expected a checkpoint that can be used" in said
    assert (copy / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_run_that_ended_before_its_first_checkpoint_starts_again(copy, undisturbed):
    shutil.rmtree(copy / "checkpoints")
    assert main(["--resume", str(copy)]) == 0
    assert_same(copy, undisturbed)


@pytest.mark.slow
def test_a_leftover_of_writing_is_never_a_checkpoint(copy, undisturbed):
    (copy / "checkpoints" / "00000014").rename(copy / "checkpoints" / ".unfinished-00000014")
    assert main(["--resume", str(copy)]) == 0
    assert_same(copy, undisturbed)
    assert checkpoints(copy) == ["00000008", "00000012", "00000014"]


def test_a_full_disk_ends_a_run_with_the_last_checkpoint_intact(tiny, undisturbed, tmp_path, monkeypatch, capsys):
    folder, (soft, hard) = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    at_iteration(monkeypatch, 7, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard)))
    try:
        assert main([tiny, "--output.folder", str(folder)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert "cannot be written: File too large. The checkpoint of iteration 4 is intact. Make room, then go on" in said
    assert f"--resume {folder}" in said
    assert checkpoints(folder) == ["00000000", "00000004"]
    monkeypatch.undo()
    assert main(["--resume", str(folder)]) == 0
    assert_same(folder, undisturbed)


@pytest.mark.slow
def test_on_another_number_of_devices_a_run_goes_on_up_to_rounding(copy, undisturbed, capsys):
    shutil.rmtree(copy / "checkpoints" / "00000014")
    assert main(["--resume", str(copy), "--backend.devices", "2", "--checkpoints.keep", "1"]) == 0
    assert "2 x cpu (mesh)" in capsys.readouterr().out
    assert checkpoints(copy) == ["00000014"]
    for a, b in zip(rows(copy), rows(undisturbed), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=1e-8), key


@pytest.mark.slow
def test_a_finished_run_may_be_made_longer(tiny, copy):
    assert main(["--resume", str(copy), "--iterations", "16"]) == 0
    assert [row["iteration"] for row in rows(copy)] == list(range(17))
    assert main(["--resume", str(copy), "--iterations", "5"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume"], "--resume: expected the folder of a run after it"),
        (["--resume", "nowhere"], "--resume nowhere: expected the folder of a run, with its config.yaml"),
        (["--resume=nowhere", "--resume", "x"], "--resume: given twice"),
        (
            ["--resume", "RUN", "--optimizer.learning-rate", "1"],
            "--optimizer.learning-rate 1: expected not to be",
        ),
        (["--resume", "RUN", "--output.folder", "x"], "--output.folder x: expected not to be given with --resume"),
        (["--resume", "RUN", "--iterations", "-1"], "iterations = -1: expected an integer >= 1"),
        (["--resume", "RUN", "configs/level_sets.yaml"], "configs/level_sets.yaml: unexpected"),
    ],
)
def test_wrong_ways_to_resume(words, message, undisturbed, capsys):
    assert main([str(undisturbed) if word == "RUN" else word for word in words]) == 2
    assert message in capsys.readouterr().err


# --- steps back ------------------------------------------------------------------------------------------------------


SGD = ["--optimizer.name", "sgd", "--optimizer.anticipate", "0", "--optimizer.schedule", "constant"]


@pytest.mark.slow
def test_a_training_that_blows_up_steps_back_and_goes_on_with_a_smaller_rate(tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    words = [*SGD, "--optimizer.learning-rate", "1e4", "--recovery.rate-factor", "1e-5", "--output.folder", str(folder)]
    assert main([tiny, *words]) == 0
    (event,) = (json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines())
    assert event["action"] == "back to iteration 0, learning rate x 1e-05"
    assert "inexact_loss = " in event["reason"]
    assert f"iteration {event['iteration']}: back to iteration 0" in capsys.readouterr().out
    assert [row["iteration"] for row in rows(folder)] == list(range(15))
    losses = [row["inexact_loss"] for row in rows(folder)]
    assert losses[-1] < losses[0]


def test_steps_back_are_limited_and_the_run_ends_with_a_sentence(tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    words = [*SGD, "--optimizer.learning-rate", "1e300", "--recovery.attempts", "2", "--output.folder", str(folder)]
    assert main([tiny, *words]) == 1
    said = capsys.readouterr().err
    assert "stopped: iteration 1, after 2 steps back with ever smaller learning rates: " in said
    assert "Lower optimizer.learning_rate" in said
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"
    assert not (folder / "parameters.npz").exists()
    assert checkpoints(folder) == ["00000000"]


@pytest.mark.slow
def test_what_is_not_finite_never_gets_into_a_checkpoint(tiny, tmp_path):
    folder = tmp_path / "run"
    words = [*SGD, "--optimizer.learning-rate", "1e300", "--recovery.attempts", "0", "--checkpoints.every", "1"]
    assert main([tiny, *words, "--output.folder", str(folder)]) == 1
    assert checkpoints(folder) == ["00000000"]


def test_two_processes_cannot_go_on_with_one_run(copy, capsys):
    with (copy / "metrics.jsonl").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["--resume", str(copy)]) == 2
    assert "another process is training in it. Wait for that, or stop it." in capsys.readouterr().err
