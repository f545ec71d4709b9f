"""The table of contraction on rough layers: what it says, and arguments it refuses."""

import json

import jax
import pytest

from experiments.contraction import COARSE, main


@pytest.fixture(autouse=True)
def _precision():
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.mark.slow
def test_sweeps_contract_where_injection_and_averages_do_not(tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(COARSE, "picard(3)")  # the longest to compile, and nothing is said of it below
    file = tmp_path / "rows.json"
    assert main(["transformer", "--layers", "16", "--iterations", "20", "--output", str(file)]) == 0
    rows = json.loads(file.read_text())["transformer"]
    for when in ("at init", "trained"):
        assert list(rows[when]) == list(COARSE)
        state = {name: factors[0] for name, factors in rows[when].items()}
        assert state["picard(2)"] < 0.5 * state["picard(1)"] < 0.25 * state["picard(0)"]
        assert state["picard(1)"] < 0.5 * min(state["average"], state["injection"])
    assert "picard(2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("perceptron", "perceptron: expected tanh, mlp, transformer"),
        ("transformer --text no_such_file.txt", "--text no_such_file.txt"),
    ],
)
def test_wrong_arguments_are_refused(words, message, capsys):
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err
