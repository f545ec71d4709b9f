"""Runs that crash, meet a full disk, damaged checkpoints or nonsense, and go on."""

import fcntl
import resource
import shutil

import pytest
from helpers.runs import assert_same, at_iteration, checkpoints, rows

from experiments.train import main


def cut_short(path):
    data = (path / "state.safetensors").read_bytes()
    (path / "state.safetensors").write_bytes(data[: len(data) // 2])


def test_a_run_goes_on_from_the_last_checkpoint_that_is_whole_and_sets_the_others_aside(crashed, undisturbed, capsys):
    shutil.rmtree(crashed / "checkpoints" / "00000014")
    cut_short(crashed / "checkpoints" / "00000012")
    assert main(["--resume", str(crashed)]) == 0
    said = capsys.readouterr().out
    assert f"not used: {crashed / 'checkpoints' / '00000012'}: state.safetensors has" in said
    assert "going on from iteration 8" in said
    assert_same(crashed, undisturbed)
    assert [name for name in checkpoints(crashed) if name.isdigit()] == ["00000008", "00000012", "00000014"]
    assert any(name.startswith("refused-00000012") for name in checkpoints(crashed))


@pytest.mark.slow
def test_anothers_checkpoint_is_refused_by_the_key_that_differs(crashed, tiny, undisturbed, tmp_path, capsys):
    other = tmp_path / "other"
    words = ["--optimizer.learning-rate", "0.03", "--output.folder", str(other)]
    assert main([tiny, *words]) == 0
    shutil.rmtree(crashed / "checkpoints" / "00000014")
    shutil.copytree(other / "checkpoints" / "00000014", crashed / "checkpoints" / "00000014")
    assert main(["--resume", str(crashed)]) == 0
    said = capsys.readouterr().out
    assert "it belongs to another training: optimizer.learning_rate was 0.03, now it is 0.02" in said
    assert_same(crashed, undisturbed)


def test_where_no_checkpoint_can_be_used_nothing_is_overwritten(crashed, capsys):
    for path in (crashed / "checkpoints").iterdir():
        cut_short(path)
    before = (crashed / "metrics.jsonl").read_bytes()
    assert main(["--resume", str(crashed)]) == 2
    said = capsys.readouterr().err
    assert said.count("state.safetensors has") == 3
    assert "expected a checkpoint that can be used" in said
    assert (crashed / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_run_that_ended_before_its_first_checkpoint_starts_again(crashed, undisturbed):
    shutil.rmtree(crashed / "checkpoints")
    assert main(["--resume", str(crashed)]) == 0
    assert_same(crashed, undisturbed)


@pytest.mark.slow
def test_a_leftover_of_writing_is_never_a_checkpoint(crashed, undisturbed):
    (crashed / "checkpoints" / "00000014").rename(crashed / "checkpoints" / ".unfinished-00000014")
    assert main(["--resume", str(crashed)]) == 0
    assert_same(crashed, undisturbed)
    assert checkpoints(crashed) == ["00000008", "00000012", "00000014"]


@pytest.mark.slow
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
def test_on_another_number_of_devices_a_run_goes_on_up_to_rounding(crashed, undisturbed, capsys):
    shutil.rmtree(crashed / "checkpoints" / "00000014")
    assert main(["--resume", str(crashed), "--backend.devices", "2", "--checkpoints.keep", "1"]) == 0
    assert "2 x cpu (mesh)" in capsys.readouterr().out
    assert checkpoints(crashed) == ["00000014"]
    for a, b in zip(rows(crashed), rows(undisturbed), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=1e-8), key


@pytest.mark.slow
def test_a_finished_run_may_be_made_longer(tiny, crashed):
    assert main(["--resume", str(crashed), "--iterations", "16"]) == 0
    assert [row["iteration"] for row in rows(crashed)] == list(range(17))
    assert main(["--resume", str(crashed), "--iterations", "5"]) == 2


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


@pytest.mark.slow
def test_one_command_begins_goes_on_and_does_no_harm_to_what_is_done(tiny, undisturbed, tmp_path, capsys):
    words = [tiny, "--resume", "auto", "--output.folder", str(tmp_path / "run")]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()  # ended while the folder was being made
    assert main([*words, "--iterations", "6"]) == 0
    assert "going on from iteration 0" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "00000014")
    for said in ("going on from iteration 12", "going on from iteration 14, the last: it is evaluated again"):
        assert main(words) == 0
        assert said in capsys.readouterr().out
        assert_same(tmp_path / "run", undisturbed)
    assert main([*words, "--optimizer.learning-rate", "0.5"]) == 2
    assert "it belongs to another training: optimizer.learning_rate was 0.02, now it is 0.5" in capsys.readouterr().err
    assert main([tiny, "--resume", "auto"]) == 2
    assert "--resume auto: expected --output.folder with it" in capsys.readouterr().err


@pytest.mark.parametrize("left", [["metrics.jsonl", "parameters.npz"], ["parameters.npz"]])
def test_a_run_whose_checkpoints_are_lost_is_not_begun_again(left, finished, capsys):
    """That would remove the rows and the parameters, which are all that is left of it."""
    for path in finished.iterdir():
        if path.name not in ("config.yaml", *left):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = {name: (finished / name).read_bytes() for name in left}
    assert main(["--resume", str(finished)]) == 2
    assert "expected its checkpoints, as it has been trained, but there are none" in capsys.readouterr().err
    assert {name: (finished / name).read_bytes() for name in left} == before


def test_two_processes_cannot_go_on_with_one_run(crashed, capsys):
    with (crashed / "metrics.jsonl").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["--resume", str(crashed)]) == 2
    assert "another process is training in it. Wait for that, or stop it." in capsys.readouterr().err
