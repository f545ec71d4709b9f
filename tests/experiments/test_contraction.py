"""The table of contraction on rough layers: what it says, and arguments it refuses."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from experiments.contraction import COARSE, MAKERS, main


@pytest.fixture(autouse=True)
def _precision():
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.mark.slow
def test_sweeps_contract_where_injection_and_averages_do_not(tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(COARSE, "picard(3)")  # the longest to compile, and nothing is said of it below
    file = tmp_path / "rows.json"
    words = "tanh --layers 64 --iterations 20 --seeds 0 1 --output"
    assert main([*words.split(), str(file)]) == 0
    rows = json.loads(file.read_text())["tanh"]
    for when in ("at init", "trained"):
        assert list(rows[when]) == list(COARSE)
        state = {name: factors["state"] for name, factors in rows[when].items()}
        assert state["picard(2)"] < 0.5 * state["picard(1)"] < 0.25 * state["picard(0)"]
        assert state["picard(1)"] < 0.5 * min(state["average"], state["injection"])
    printed = capsys.readouterr().out
    assert "tanh, at init" in printed and "picard(2)" in printed and "0.034" in printed  # the study's


@pytest.mark.slow
def test_sweeps_contract_as_the_law_and_the_study_say_in_eight_intervals(tmp_path, monkeypatch):
    for name in ("injection", "average", "picard(3)"):
        monkeypatch.delitem(COARSE, name)
    file = tmp_path / "rows.json"
    assert main(["eight", "--layers", "64", "--iterations", "0", "--seeds", "0", "1", "--output", str(file)]) == 0
    for name, study in (("picard(0)", 0.39), ("picard(1)", 0.15), ("picard(2)", 0.026)):
        own = json.loads(file.read_text())["eight"]["at init"][name]
        assert 0.5 < own["state"] / own["law"] < 2 and 0.5 < own["state"] / study < 2


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "mlp" or importlib.util.find_spec("sklearn")])
def test_every_network_has_as_many_layers_as_it_says_and_a_loss(name):
    subject = MAKERS[name](16, None)
    params = subject.draw(np.random.default_rng(0))
    assert {x.shape[0] for x in jax.tree.leaves(params.layers)} == {subject.layers} == {16}

    def loss(params, key):
        x, y = subject.batch(key)
        one = jax.tree.map(lambda x: x[0], params.layers)
        return subject.loss(params.closing, subject.step(one, subject.opening(params.opening, x), subject.h), y)

    value = jax.eval_shape(loss, params, jax.random.key(0))
    assert value.shape == () and value.dtype == "float64"
    assert {*subject.study["at init"]} <= {*COARSE}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("perceptron", "perceptron: expected tanh, eight, mlp, transformer"),
        ("transformer --text no_such_file.txt", "--text no_such_file.txt"),
    ],
)
def test_wrong_arguments_are_refused(words, message, capsys):
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err
