"""The picture of residuals over cycles: what is in it, and arguments it refuses."""

import json

import jax
import matplotlib.image
import pytest

from experiments.convergence import LAYERS, cycles_to, main


@pytest.fixture(autouse=True)
def _precision():
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.mark.slow
def test_cycles_do_not_grow_with_the_number_of_layers(tmp_path, capsys):
    words = ["--layers", "64", "1024", "--width", "4", "--batch", "4", "--cycles", "8", "--folder", str(tmp_path)]
    assert main(words) == 0
    found = json.loads((tmp_path / "residuals.json").read_text())
    for kind in ("state", "adjoint"):
        shallow, deep = (cycles_to(found[kind][layers], 1e-8) for layers in ("64", "1024"))
        assert deep <= shallow + 1 <= 7
        assert len(found[kind]["64"]) == 8
    said = capsys.readouterr().out
    assert "layers" in said and str(tmp_path) in said
    picture = matplotlib.image.imread(tmp_path / "convergence.png")
    assert min(picture.shape[:2]) > 400 and picture[..., :3].std() > 0.05


def test_the_default_is_the_published_range():
    assert (LAYERS[0], LAYERS[-1]) == (64, 4096)


def test_cycles_are_counted_to_the_first_residual_that_is_small_enough():
    assert cycles_to([2.0, 1.0, 1e-3, 1e-9], 1e-3) == 2
    assert cycles_to([2.0, 1.0], 1e-3) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--layers 7", "--layers 7: expected at least 8, two intervals of --coarsening-factor 4"),
        ("--layers 64 64", "--layers 64 64: one is given twice"),
        ("--layers many", "--layers: expected an integer >= 2, given 'many'"),
        ("--final-time 0", "--final-time: expected a number > 0, given '0'"),
        ("--final-time nan", "--final-time: expected a number > 0, given 'nan'"),
        ("--coarsening-factor 1", "--coarsening-factor: expected an integer >= 2, given '1'"),
        ("--cycle W", "--cycle: invalid choice: 'W'"),
        ("--width 0", "--width: expected an integer >= 1"),
        ("--colour red", "--colour: unknown option. See --help for the options."),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_done(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_earlier_folder_is_never_overwritten(tmp_path, capsys):
    (tmp_path / "kept").write_text("")
    assert main(["--folder", str(tmp_path)]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err
