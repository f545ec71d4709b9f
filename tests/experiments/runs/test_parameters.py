"""Parameters belong to an iteration, are whole or absent, and the newest that can be believed are evaluated."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers.runs import at_iteration, checkpoints, signals

import jaxmgrit as jm
from experiments.errors import ConfigError
from experiments.evaluate import main as evaluate
from experiments.runs.files import write_whole
from experiments.runs.newest import load_trained
from experiments.runs.parameters import load_params, read_final, read_summary, save_params
from experiments.train import main


@pytest.fixture
def newest(training):
    config, data, _ = training
    jax.config.update("jax_enable_x64", True)
    return lambda folder, iteration=None: load_trained(config, data, folder, iteration)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_the_final_parameters_are_those_of_the_last_iteration(finished, newest):
    trained = newest(finished)
    assert trained.iteration == 14 and trained.remarks == []
    assert same(trained.params, load_params(finished / "parameters.npz"))
    assert newest(finished, 8).iteration == 8


@pytest.mark.slow
def test_a_run_that_is_extended_and_interrupted_has_no_old_results(finished, newest, monkeypatch):
    old = load_params(finished / "parameters.npz")
    at_iteration(monkeypatch, 17, signals(15))
    assert main(["--resume", str(finished), "--iterations", "100000"]) == 143
    assert json.loads((finished / "summary.json").read_text())["status"] == "interrupted"
    assert not (finished / "parameters.npz").exists()
    assert checkpoints(finished) == ["00000014", "00000016", "00000018"]
    trained = newest(finished)
    assert trained.iteration == 18 and not same(trained.params, old)
    assert same(newest(finished, 14).params, old)
    assert evaluate([str(finished)]) == 0
    assert json.loads((finished / "evaluation.json").read_text())["iteration"] == 18


def test_an_older_programs_results_beside_a_newer_checkpoint_are_not_the_newest(finished, newest):
    shutil.copytree(finished / "checkpoints" / "00000012", finished / "checkpoints" / "spare")
    summary = json.loads((finished / "summary.json").read_text())
    del summary["parameters"]
    (finished / "summary.json").write_text(json.dumps({**summary, "iteration": 12}))
    assert newest(finished).iteration == 14


@pytest.mark.parametrize(("old", "new"), [('"iteration": 14', '"iteration": 19'), ("finished", "finishee")])
def test_a_summary_that_is_damaged_tells_of_no_parameters(old, new, finished, newest):
    text = (finished / "summary.json").read_text()
    (finished / "summary.json").write_text(text.replace(old, new))
    assert read_final(finished) == (None, None) and read_summary(finished) == {}
    assert newest(finished).iteration == 14  # of the checkpoint
    (finished / "summary.json").write_text(" ".join(text.split()))  # other white space is no damage
    assert read_final(finished).iteration == 14


def cut_short(path):
    path.write_bytes(path.read_bytes()[:700])


def another_runs(path):
    params = load_params(path)
    path.unlink()
    save_params(path, jax.tree.map(lambda x: x + 1, params))


def endless(path):
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("act", [cut_short, another_runs, endless])
def test_parameters_that_are_not_the_summarys_give_way_to_the_checkpoint_of_the_same_iteration(act, finished, newest):
    own = load_params(finished / "parameters.npz")
    act(finished / "parameters.npz")
    trained = newest(finished)
    assert trained.iteration == 14 and same(trained.params, own)
    assert trained.remarks[0].startswith(f"{finished / 'parameters.npz'}: it ")


def test_another_networks_parameters_are_refused_though_no_checksum_is_known(finished, newest):
    summary = json.loads((finished / "summary.json").read_text())
    del summary["parameters"]
    (finished / "summary.json").write_text(json.dumps(summary))
    assert newest(finished).remarks == []
    params = load_params(finished / "parameters.npz")
    save_params(finished / "parameters.npz", params._replace(closing={"w": np.zeros((2, 2))}))
    assert newest(finished).remarks[0].endswith("its arrays are not those of this run's network")


def test_where_nothing_can_be_used_every_reason_is_given(finished, newest):
    cut_short(finished / "parameters.npz")
    for path in (finished / "checkpoints").iterdir():
        cut_short(path / "state.safetensors")
    with pytest.raises(ConfigError) as raised:
        newest(finished)
    assert str(raised.value).count("\n") == 4
    assert str(raised.value).endswith("expected parameters.npz or a checkpoint that can be used.")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x93NUMPY" + bytes(80)])
def test_a_file_that_holds_no_parameters_is_refused_by_name(data, tmp_path):
    (tmp_path / "parameters.npz").write_bytes(data)
    with pytest.raises(ValueError, match=f"^{tmp_path / 'parameters.npz'}: it is "):
        load_params(tmp_path / "parameters.npz")


def test_other_arrays_are_no_parameters(tmp_path):
    np.savez(tmp_path / "parameters.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="expected arrays named opening/..., layers/..., closing/..."):
        load_params(tmp_path / "parameters.npz")


def test_saving_gives_the_stamp_of_the_file_and_loading_gives_it_back(tmp_path):
    params = jm.Params({"w": np.ones(2)}, {"w": np.zeros((3, 2))}, {"deep": {"b": np.arange(2.0)}})
    stamp = save_params(tmp_path / "parameters.npz", params)
    assert stamp["bytes"] == (tmp_path / "parameters.npz").stat().st_size
    assert same(load_params(tmp_path / "parameters.npz"), params)


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    from experiments.runs import files

    write_whole(tmp_path / "file", b"before")
    monkeypatch.setattr(files, "write_all", lambda file, data: _full())
    with pytest.raises(OSError, match="No space") as raised:
        write_whole(tmp_path / "file", b"after")
    assert raised.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _full():
    raise OSError(28, "No space left on device")
