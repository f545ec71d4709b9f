"""Checkpoints: what is damaged, another's or made up is refused by name; what is read is what was written."""

import hashlib
import json
import os

import jax
import numpy as np
import pytest
import safetensors.numpy

from experiments.runs.checkpoints import Checkpoints
from experiments.training.checkpoint import Refused


@pytest.fixture
def like(training):
    return training[2].like


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


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(damage, crashed, checkpoints_of, like):
    act, reason = DAMAGES[damage]
    act(crashed / "checkpoints" / "00000014")
    checkpoint, (refused,) = checkpoints_of(crashed).latest(like)
    assert refused.startswith(f"{crashed / 'checkpoints' / '00000014'}: {reason}")
    assert checkpoint.snapshot.iteration == 12


def test_a_renamed_checkpoint_is_not_taken_for_another_iterations(crashed, checkpoints_of, like):
    (crashed / "checkpoints" / "00000012").rename(crashed / "checkpoints" / "00000015")
    checkpoint, (refused,) = checkpoints_of(crashed).latest(like)
    assert refused.endswith("00000015: it is the checkpoint of iteration 12")
    assert checkpoint.snapshot.iteration == 14


def test_only_folders_with_plain_numbers_are_checkpoints(crashed, checkpoints_of, like):
    for name in ("\u00b2", "\u0663", "1e3", "-5", "+7", " 9", "9" * 40):
        (crashed / "checkpoints" / name).mkdir()
    (crashed / "checkpoints" / "99").write_text("a file")
    checkpoint, refused = checkpoints_of(crashed).latest(like)
    assert checkpoint.iteration == 14 and not refused


def sealed(path, change):
    """Change a manifest's values and give it the checksum that belongs to them."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    change(manifest)
    text = json.dumps(manifest, sort_keys=True).encode()
    (path / "manifest.json").write_text(json.dumps({**manifest, "sha256": hashlib.sha256(text).hexdigest()}))


def put(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(manifest):
        for key in keys:
            manifest = manifest[key]
        manifest[last] = value

    return change


def drop(*keys):
    *above, last = keys

    def change(manifest):
        for key in above:
            manifest = manifest[key]
        del manifest[last]

    return change


NONSENSE = {
    "end before now": (put("loop", "end", -5), "loop.end is -5, expected null or 14"),
    "rate out of all bounds": (put("loop", "rate", 1e9), "loop.rate is 1000000000.0, expected a number above 0"),
    "rate that is no number": (put("loop", "rate", float("nan")), "loop.rate is nan"),
    "an infinite loss": (put("loop", "first_loss", float("inf")), "loop.first_loss is inf, expected a number or null"),
    "endless seconds": (put("loop", "seconds", float("inf")), "loop.seconds is inf, expected a number >= 0"),
    "rate as text": (put("loop", "rate", "1"), "loop.rate is '1'"),
    "truth for a number": (put("loop", "setbacks", True), "loop.setbacks is True"),
    "more setbacks than allowed": (put("loop", "setbacks", 99), "loop.setbacks is 99, expected an integer from 0 to 3"),
    "a network that is none": (put("loop", "network", 7), "loop.network is 7, expected an integer from 0 to 0"),
    "begun later": (put("loop", "begun", 15), "loop.begun is 15, expected an integer from 0 to 14"),
    "control too short": (put("loop", "control", [0]), "loop.control is [0], expected 8 values"),
    "control of no ladder": (put("loop", "control", 0, 5), "loop.control.rung is 5, expected an integer from 0 to 0"),
    "an unknown key": (put("loop", "nonsense", 1), "loop.nonsense is not known to this version"),
    "no loop": (drop("loop"), "manifest.json: loop is None, expected an object"),
    "a list for the loop": (put("loop", [1]), "manifest.json: loop is [1], expected an object"),
    "no config": (drop("config"), "manifest.json: config is None, expected an object"),
    "a config without problem": (drop("config", "problem"), "it belongs to another training: problem.name was None"),
    "no arrays": (drop("arrays"), "manifest.json: arrays is None, expected an object"),
    "negative bytes": (put("arrays", "bytes", -1), "manifest.json: arrays.bytes is -1, expected an integer >= 0"),
    "no checksum": (drop("arrays", "sha256"), "manifest.json: arrays.sha256 is None, expected text"),
    "iteration as text": (put("iteration", "14"), "manifest.json: iteration is '14', expected an integer >= 0"),
    "format as truth": (put("format", True), "manifest.json has format True, but this version reads 1"),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_what_no_training_leaves_is_refused_by_its_key_though_the_checksum_is_right(
    case, crashed, checkpoints_of, like
):
    change, reason = NONSENSE[case]
    path = crashed / "checkpoints" / "00000014"
    sealed(path, change)
    with pytest.raises(Refused) as raised:
        checkpoints_of(crashed).read(path, like)
    assert str(raised.value).startswith(f"{path}: {reason}")


def resealed_arrays(path, arrays):
    (path / "state.safetensors").write_bytes(arrays)
    stamp = {"bytes": len(arrays), "sha256": hashlib.sha256(arrays).hexdigest()}
    sealed(path, put("arrays", stamp))


def test_arrays_of_other_names_shapes_dtypes_and_iterations_are_refused(crashed, checkpoints_of, like):
    path = crashed / "checkpoints" / "00000014"
    own = safetensors.numpy.load((path / "state.safetensors").read_bytes())
    first = next(name for name in own if own[name].ndim > 1)
    for arrays, reason in (
        ({**own, first: own[first][:1]}, f"{first} is float64"),
        ({**own, first: own[first].astype(np.float32)}, f"{first} is float32"),
        ({name: own[name] for name in own if name != first}, f"{first} is missing"),
        ({**own, "more": own[first]}, "it holds more, which this training does not have"),
        ({**own, "iteration": np.array(9, own["iteration"].dtype)}, "state.safetensors is about iteration 9"),
    ):
        resealed_arrays(path, safetensors.numpy.save(arrays))
        with pytest.raises(Refused) as raised:
            checkpoints_of(crashed).read(path, like)
        assert str(raised.value).startswith(f"{path}: {reason}")
    for arrays in (b"", b"\xff" * 8, (2**40).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"{}"):
        resealed_arrays(path, arrays)
        with pytest.raises(Refused):
            checkpoints_of(crashed).read(path, like)


@pytest.mark.parametrize("name", ["manifest.json", "state.safetensors"])
@pytest.mark.parametrize("target", ["/dev/zero", "pipe", "folder"])
def test_what_never_ends_or_is_no_file_is_refused_at_once(name, target, crashed, checkpoints_of, like):
    path = crashed / "checkpoints" / "00000014"
    (path / name).unlink()
    if target == "pipe":
        os.mkfifo(path / name)
    elif target == "folder":
        (path / name).mkdir()
    else:
        (path / name).symlink_to(target)
    with pytest.raises(Refused, match=f"{name} cannot be read: "):
        checkpoints_of(crashed).read(path, like)


def test_a_manifest_that_is_nested_too_deeply_is_refused(crashed, checkpoints_of, like):
    path = crashed / "checkpoints" / "00000014"
    (path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(Refused, match="nested too deeply|not JSON"):
        checkpoints_of(crashed).read(path, like)


def test_what_is_written_is_read_bit_for_bit(crashed, checkpoints_of, like, tmp_path):
    checkpoint, _ = checkpoints_of(crashed).latest(like)
    (tmp_path / "other").mkdir()
    others = Checkpoints(tmp_path / "other", 2, checkpoints_of(crashed)._binding)
    again = others.read(others.write(checkpoint), like)
    assert again.loop == checkpoint.loop
    for a, b in zip(jax.tree.leaves(again.snapshot), jax.tree.leaves(checkpoint.snapshot), strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def test_checkpoints_that_another_process_replaces_meanwhile_are_looked_for_again(crashed, checkpoints_of, like):
    checkpoints, read = checkpoints_of(crashed), []

    def slow(path, like):
        read.append(path.name)
        if len(read) < 3:
            path.rename(path.with_name(f"{int(path.name) + 2 ** len(read):08d}"))
        return type(checkpoints).read(checkpoints, path, like)

    manifest = json.loads((crashed / "checkpoints" / "00000014" / "manifest.json").read_text())
    for path in (crashed / "checkpoints").iterdir():
        if path.name != "00000014":
            path.rename(crashed / path.name)
    checkpoints.read = slow
    checkpoint, refused = checkpoints.latest(like)
    assert manifest["iteration"] == 14 and checkpoint is None
    assert read == ["00000014", "00000016", "00000020"]
    assert refused == [f"{crashed / 'checkpoints' / '00000020'}: it is the checkpoint of iteration 14"]
