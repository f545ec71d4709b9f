"""Numbers on the command lines of measurements, for argparse; `experiments.config.yaml_values` says what one is."""

import argparse
import math
from collections.abc import Callable

from experiments.config.yaml_values import parse_word


def at_least(least: int) -> Callable[[str], int]:
    """A parser of integers of at least `least`."""

    def parse(word: str) -> int:
        value = _parsed(word)
        if isinstance(value, int) and value >= least:
            return value
        raise argparse.ArgumentTypeError(f"expected an integer >= {least}, given {word!r}")

    return parse


def above(limit: float, most: float = math.inf) -> Callable[[str], float]:
    """A parser of finite numbers greater than `limit` and at most `most`."""

    def parse(word: str) -> float:
        value = _parsed(word)
        if isinstance(value, int | float) and limit < value <= most and math.isfinite(value):
            return float(value)
        limits = f"> {limit:g}" + (f" and <= {most:g}" if most < math.inf else "")
        raise argparse.ArgumentTypeError(f"expected a number {limits}, given {word!r}")

    return parse


def _parsed(word: str) -> object:
    try:
        value = parse_word(word)
    except ValueError:
        return None
    return None if isinstance(value, bool) else value
