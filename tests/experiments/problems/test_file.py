"""Data in files and functions of the user's own: what is read is what was written, and what does not fit is named."""

import hashlib
import json
import sys
import time

import jax
import numpy as np
import pytest

from experiments import problems
from experiments.config.reader import read
from experiments.errors import ConfigError
from experiments.foundation.functions import own_function
from experiments.problems.data import stratified
from experiments.problems.file import File, Own
from experiments.runs.folder import read_metrics
from experiments.runs.resume import load
from experiments.train import main

MODULE = """
import sys, jax, jax.numpy as jnp, numpy as np, jaxmgrit as jm


def coarse_step(step, theta, u, h, m):
    return step(theta, u, h)


def first_layer(theta):
    return jax.tree.map(lambda leaf: leaf[0], theta)


def loss(outputs, y):
    return jnp.mean((outputs - jax.nn.one_hot(y, outputs.shape[-1])) ** 2)


def network(layers, width):
    def init(key, shape, classes):
        a, b, c = jax.random.split(key, 3)
        turn = jnp.broadcast_to(jax.random.normal(b, (width, width)) / width, (layers, width, width))
        ends = jax.random.normal(a, (shape[0], width)), jax.random.normal(c, (width, classes)) / width
        return jm.Params({"w": ends[0]}, {"w": turn}, {"w": ends[1]})

    step = lambda theta, u, h: u + h * jnp.sin(u @ theta["w"])
    return lambda theta, x: x @ theta["w"], step, lambda theta, u: u @ theta["w"], init


def quadrants(seed):
    x = np.random.default_rng(seed).normal(size=(120, 2))
    y = (x[:, 0] > 0).astype(int)
    return x[:80], y[:80], x[80:], y[80:]


def ragged(seed): return [[1, 2], [3]], [0, 1], [[1, 2]], [0]
def masked(seed): return np.ma.masked_less(np.zeros((4, 2)), 1), [0, 1, 0, 1], np.zeros((2, 2)), [0, 1]
def leaves(seed): sys.exit(0)
def one(a): return a
def changes(step, theta, u, h, m): return u[:1]
def no_network(layers, width): return None
"""
TINY = """
problem: {name: function, function: "own_module:quadrants"}
iterations: 40
dtype: float64
network: {kind: "own_module:network", layers: 16}
optimizer: {learning_rate: 0.05}
training: {loss: "own_module:loss"}
solver: {coarse_step: "own_module:coarse_step", coarse_params: "own_module:first_layer"}
evaluation: {every: 20}
output: {pictures: false}
"""


@pytest.fixture(autouse=True)
def _precision():
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_module.py").write_text(MODULE)
    (tmp_path / "own.yaml").write_text(TINY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("own_module", None)
    own_function.cache_clear()


def points(seed=0):
    x = np.random.default_rng(seed).normal(3.0, 2.0, size=(50, 3))
    return x, np.array(["up", "down"])[(x[:, 0] > 3).astype(int)]


def test_arrays_of_a_file_are_split_scaled_and_numbered(tmp_path):
    x, y = points()
    np.savez(tmp_path / "points.npz", x=x, y=y)
    data = problems.load(File(name="file", file=str(tmp_path / "points.npz")), 0)
    assert (len(data.train.y), len(data.validation.y), data.names) == (40, 10, ("down", "up"))
    np.testing.assert_allclose(data.train.x.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(data.train.x.std(axis=0), 1)
    split = np.concatenate([data.train.x, data.validation.x])
    np.testing.assert_array_equal(np.sort(split, axis=0), np.sort(data.prepare(x), axis=0))
    assert data.sha256 == hashlib.sha256((tmp_path / "points.npz").read_bytes()).hexdigest()
    both = File(name="file", file=str(tmp_path / "points.npz"), validation_file=str(tmp_path / "points.npz"))
    np.testing.assert_array_equal(*(part.x for part in problems.load(both, 0)[:2]))


def test_named_columns_of_a_file(tmp_path):
    x, y = points()
    lines = ["a, kind ,b,c", *(f"{p[0]!r},{k},{p[1]!r},{p[2]!r}" for p, k in zip(x.tolist(), y, strict=True))]
    (tmp_path / "points.csv").write_text("\n".join(lines))
    section = File(name="file", file=str(tmp_path / "points.csv"), label="kind", standardise=False)
    data = problems.load(section.model_copy(update={"inputs": ["c", "a"]}), 0)
    rows = {tuple(row) for row in x[:, [2, 0]].tolist()}
    assert {tuple(row) for part in data[:2] for row in part.x.tolist()} == rows
    for row, label in zip(*data.train, strict=True):
        assert data.names[label] == y[np.flatnonzero(x[:, 0] == row[1])[0]]
    assert problems.load(section, 0).train.x.shape[1] == 3


@pytest.mark.parametrize(
    ("name", "content", "keys", "message"),
    [
        ("x.csv", "a,y\n1,0\n2,one\n", {"inputs": ["b"]}, r"problem\.inputs: no column 'b' in .* has a, y"),
        ("x.csv", "alpha,y\n1,0\n2,1\n", {"label": "alfa"}, r"problem\.label: no column 'alfa'.*Did you mean 'alpha'"),
        ("x.csv", "a,y\n1,0\ntwo,1\n", {}, r"line 3, column 'a': expected a number, found 'two'"),
        ("x.csv", "a,y\n1,0\n1_0,1\n", {}, r"line 3, column 'a': expected a number, found '1_0'"),
        ("x.csv", "a,y\n1,0\n\u0663,1\n", {}, r"line 3, column 'a': expected a number, found '\u0663'"),
        ("x.csv", "a,y\n1,0\n2, \n", {}, r"line 3, column 'y': expected a label, found none"),
        ("x.csv", "a,y\n1,0\n2\n", {}, r"line 3 has 1 values, expected 2"),
        ("x.csv", "a,y\n\n\n1,0\n\ntwo,1\n", {}, r"line 6, column 'a'"),
        ("x.csv", "a;y\n1,5;0\n2,5;1\n", {}, r"expected commas between columns, found ';'"),
        ("x.csv", 'a,y\n1,0\n2,"1\n3,0\n', {}, r"line 4: expected values between commas: unexpected end of data"),
        ("x.csv", "a,y\n1,1\n2,nan\n", {}, r"line 3, column 'y': expected a label, found nan"),
        ("x.csv", "a,y\n1,0\n2,1\n", {"inputs": ["a", "y"]}, r"inputs = .*: expected columns without the label 'y'"),
        ("x.csv", "a,y\n1,0\n-1e200,1\n", {}, r"expected inputs of at most 1e\+100, found one of size 1e\+200"),
        ("x.csv", "a,y\n1e-200,0\n2e-200,1\n3e-200,1\n", {}, r"expected numbers that vary by more than 1e-150"),
        ("x.csv", "a,y\n" + "3,0.1\n" * 10, {"targets": ["y"]}, r"expected a target that varies, but y is the same"),
        ("x.csv", "a,y\n1,0\n2,1\n3,2\n", {}, r"but 1 of 3 classes are among the validation points only: '.'\."),
        ("x.csv", "a,y\n1,0\n2,1\n", {"validation_file": "n" * 999 + ".csv"}, r"validation_file = .*: no such file"),
        ("x.csv", "a,a\n1,0\n", {}, r"the column 'a' is there twice"),
        ("x.csv", "a,y\n", {}, r"expected lines of values"),
        ("x.csv", "a,y\n1,0\n2,0\n", {}, r"expected labels of at least 2 classes, found 1"),
        ("x.csv", "a,y\nnan,0\n2,1\n", {}, r"expected finite inputs, found nan in point 0"),
        ("x.csv", "a,y\n1,0.5\n2,0.25\n", {"validation_share": 0.01}, r"problem\.validation_share = 0\.01: expected"),
        ("x.txt", "", {}, r"expected a \.npz or \.csv file"),
        ("x.npz", "no archive", {}, r"not a valid \.npz file"),
    ],
)
def test_files_that_do_not_do(tmp_path, name, content, keys, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        problems.load(File(name="file", file=str(tmp_path / name), **keys), 0)


def test_columns_of_the_validation_file_are_those_of_the_training_by_name(tmp_path):
    (tmp_path / "x.csv").write_text("a,b,y\n" + "".join(f"{i},{100 * i},{i % 2}\n" for i in range(8)))
    (tmp_path / "v.csv").write_text("b,more,y,a\n" + "".join(f"{100 * i},-,{i % 2},{i}\n" for i in range(8)))
    section = File(name="file", file=str(tmp_path / "x.csv"), validation_file=str(tmp_path / "v.csv"))
    train, validation = problems.load(section, 0)[:2]
    np.testing.assert_array_equal(train.x, validation.x)
    (tmp_path / "v.csv").write_text("a,c,y\n1,2,0\n")
    with pytest.raises(ConfigError, match=r"no column 'b' in .*v\.csv"):
        problems.load(section, 0)


def test_what_never_varies_becomes_zero_and_what_does_keeps_its_class(tmp_path):
    # The mean of forty times 0.1 is another double, by which the rest must not be divided.
    np.savez(
        tmp_path / "x.npz", x=np.c_[np.full(40, 0.1), np.arange(40)], y=np.array([b"no", b"yes"])[np.arange(40) % 2]
    )
    np.savez(tmp_path / "v.npz", x=[[0.1, 1], [0.2, 3]], y=["yes", "no"])
    data = problems.load(File(name="file", file=f"{tmp_path}/x.npz", validation_file=f"{tmp_path}/v.npz"), 0)
    assert data.names == ("no", "yes") and data.validation.y.tolist() == [1, 0]
    np.testing.assert_array_equal(data.train.x[:, 0], 0)
    np.testing.assert_allclose(data.validation.x[:, 0], [0, 0.1])


def test_data_that_the_training_cannot_hold_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.arange(20.0)[:, None] * 1e39, y=np.arange(20) % 2)
    (tmp_path / "c.yaml").write_text(f"problem: {{name: file, file: {tmp_path}/x.npz, standardise: false}}\n")
    config = read([str(tmp_path / "c.yaml")], "experiments.train")
    with pytest.raises(ConfigError, match=r"dtype = 'float32': expected data of at most 3\.4e38, found .* 1\.9e\+40"):
        load(config, None)
    assert load(config.model_copy(update={"dtype": "float64"}), None).train.x.max() < 2e40


def test_many_classes_are_split_in_proportion_to_the_points(tmp_path):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(30_000), 5))
    start = time.process_time()
    train, validation = stratified(labels, (120_000, 30_000), np.random.default_rng(1))
    assert time.process_time() - start < 5
    assert set(np.bincount(labels[train])) == {4} and set(np.bincount(labels[validation])) == {1}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["01", "02", "10"], ("1", "2", "10")),
        (["1", "01", "2"], ("01", "1", "2")),  # as integers two of them would be one class
        (["1", "1_0", "10"], ("1", "10", "1_0")),
        (["-1", "+1", "0"], ("-1", "0", "1")),
        (["9" * 30, "1", "2"], ("1", "2", "9" * 30)),
    ],
)
def test_labels_that_are_written_differently_are_never_one_class(labels, names, tmp_path):
    (tmp_path / "x.csv").write_text("x,y\n" + "".join(f"{i},{label}\n" for i, label in enumerate(labels * 4)))
    data = problems.load(File(name="file", file=str(tmp_path / "x.csv"), standardise=False), 0)
    assert data.names == names
    for part in data[:2]:
        for x, y in zip(part.x[:, 0].astype(int), part.y, strict=True):
            assert labels[x % 3].lstrip("+0") == names[y].lstrip("0") or labels[x % 3] == names[y]


def test_a_file_of_many_columns_takes_time_in_proportion_to_them(tmp_path):
    count = 50_000
    names = ",".join(f"c{i}" for i in range(count))
    rows = "".join(f"{label}," + ",".join("1" * count) + "\n" for label in "abab")
    (tmp_path / "x.csv").write_text(f"y,{names}\n{rows}")
    start = time.process_time()
    assert (
        problems.load(File(name="file", file=str(tmp_path / "x.csv"), validation_share=0.5), 0).train.x.shape[1]
        == count
    )
    assert time.process_time() - start < 10


@pytest.mark.parametrize("key", ["file", "validation_file"])
def test_a_home_folder_that_is_not_there_is_named(key, tmp_path):
    (tmp_path / "x.csv").write_text("x,y\n" + "1,0\n2,1\n" * 4)
    places = {"file": str(tmp_path / "x.csv"), key: "~nobody-of-this-name/x.csv"}
    with pytest.raises(ConfigError, match=rf"problem\.{key} = '~nobody.*Write the path in full"):
        problems.load(File(name="file", **places), 0)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros(4), np.arange(4), r"expected inputs of numbers, .* found float64 of shape \(4,\)"),
        (np.zeros((4, 2)), np.arange(3), r"expected 4 labels, one for each point, found an array of shape \(3,\)"),
        (np.zeros((4, 2)), np.linspace(0, 1, 4), r"expected labels that are integers or texts, found float64"),
    ],
)
def test_arrays_that_do_not_do(tmp_path, x, y, message):
    np.savez(tmp_path / "x.npz", x=x, y=y)
    with pytest.raises(ConfigError, match=message):
        problems.load(File(name="file", file=str(tmp_path / "x.npz")), 0)
    with pytest.raises(ConfigError, match=r"problem\.file = '.*nothing.npz': no such file"):
        problems.load(File(name="file", file=str(tmp_path / "nothing.npz")), 0)


@pytest.mark.slow
def test_a_training_of_functions_of_ones_own(own, capsys):
    assert main([str(own / "own.yaml"), "--output.folder", str(own / "run")]) == 0
    assert f"own_module:coarse_step ({own / 'own_module.py'})" in capsys.readouterr().out
    rows = read_metrics(own / "run")
    assert rows[-1]["exact_validation_accuracy"] > 0.9
    assert rows[-1]["exact_train_loss"] < 0.3  # of the squares
    assert main(["--resume", str(own / "run"), "--iterations", "42"]) == 0
    assert "imports:  own_module:quadrants" in capsys.readouterr().out
    assert len(json.loads((own / "run" / "data.json").read_text())["classes"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--solver.coarse-step", "own_module:one"], "expected a function coarse_step(step, theta, u, h, m) -> u_next"),
        (["--solver.coarse-step", "own_module:changes"], "coarse_step changes the state"),
        (["--training.loss", "own_module:los"], "the module has no 'los'"),
        (["--network.kind", "own_modul:network"], "there is no module 'own_modul'"),
        (["--network.kind", "own_module:no_network"], "expected four functions, (opening, step, outputs, init)"),
        (["--network.kind", "squeezed"], "expected dense or convolutional or mlp or transformer or module:function"),
        (["--problem.function", "own_module:one"], "expected it to return (x, y, x_validation, y_validation)"),
        (["--problem.function", "own_module:ragged"], "y_validation): ValueError: setting an array element"),
        (["--problem.function", "own_module:masked"], "an array has masked values"),
        (["--problem.function", "own_module:leaves"], "SystemExit: 0"),
    ],
)
def test_functions_that_do_not_fit_are_named_before_anything_is_done(own, words, message, capsys):
    assert main([str(own / "own.yaml"), *words, "--output.folder", str(own / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (own / "run").exists()


def test_nothing_is_imported_from_the_folder_of_a_run(own):
    (own / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match=r"own_module\.py lies in the folder of a run"):
        problems.load(Own(name="function", function="own_module:quadrants"), 0)
    assert "own_module" not in sys.modules
