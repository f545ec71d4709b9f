"""Numbers on command lines: decimal as they are written, in their range, or refused by argparse."""

import argparse

import pytest

from experiments import benchmark, convergence, plan, scaling, time_to_accuracy
from experiments.config.arguments import above, at_least, output_file, path
from experiments.runs import __main__ as runs


@pytest.mark.parametrize(
    ("parse", "word", "value"),
    [(at_least(1), "010", 10), (at_least(0), "0", 0), (above(0), "1e-3", 1e-3), (above(0, 1), "1", 1.0)],
)
def test_numbers_in_range(parse, word, value):
    assert parse(word) == value
    assert type(parse(word)) is type(value)


@pytest.mark.parametrize(
    ("parse", "word", "message"),
    [
        (at_least(1), "0", "expected an integer >= 1, given '0'"),
        *(
            (at_least(1), word, "expected an integer >= 1")
            for word in ("1.0", "\u00b2", "\u0663", "1:30", "yes", "", "x", "&a")
        ),
        (above(0), "0", "expected a number > 0, given '0'"),
        (above(0, 1), "1.5", "expected a number > 0 and <= 1, given '1.5'"),
        *(
            (above(0), word, "expected a number > 0")
            for word in (".inf", ".nan", "true", "1e400", "-1", "[", "9" * 400)
        ),
        *(
            (output_file, word, "expected a file that may be written")
            for word in ("/", "/no/such/folder/file", "/dev/null/file", "")
        ),
    ],
)
def test_others_are_refused(parse, word, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message.replace("(", r"\(")):
        parse(word)


def test_a_home_folder_is_that_of_the_user(monkeypatch, tmp_path):
    """A shell expands `~x` in `--folder ~x`, but not in `--folder=~x`, which once made a folder of this name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path("~/a") == output_file("~/a") == tmp_path / "a"
    assert runs.main(["~/a"]) == 2 and convergence.main(["--layers", "16", "--folder=~/a", "--width", "2"]) == 0
    assert (tmp_path / "a" / "residuals.json").exists()
    with pytest.raises(argparse.ArgumentTypeError, match="no such home folder, given '~nobody-of-this-name'"):
        path("~nobody-of-this-name")


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (benchmark, "--bathc 3", "--bathc: unknown option. Did you mean --batch?"),
        (benchmark, "--nothing-like-it 3", "--nothing-like-it: unknown option. See --help"),
        (convergence, "--layer 3", "--layer: unknown option. Did you mean --layers"),
        (plan, "configs/level_sets.yaml --device 2", "--device: unknown option. Did you mean --devices"),
        (
            plan,
            "configs/level_sets.yaml --network.layer 2",
            "--network.layer: unknown option. Did you mean --network.layers",
        ),
        (scaling, "configs/level_sets.yaml --foldr x", "--foldr: unknown option. Did you mean --folder"),
        (time_to_accuracy, "configs/level_sets.yaml --seed_s 1", "--seed-s: unknown option. Did you mean --seeds"),
    ],
)
def test_misspelt_options_are_answered_by_the_nearest(command, words, message, capsys):
    assert command.main(words.split()) == 2
    assert message in capsys.readouterr().err
