"""Numbers on command lines: decimal as they are written, in their range, or refused by argparse."""

import argparse

import pytest

from experiments.arguments import above, at_least


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
        *((above(0), word, "expected a number > 0") for word in (".inf", ".nan", "true", "1e400", "-1", "[")),
    ],
)
def test_others_are_refused(parse, word, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message.replace("(", r"\(")):
        parse(word)
