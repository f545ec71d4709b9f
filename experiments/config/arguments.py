"""Command lines of measurements: unknown options answered with the nearest one, and numbers in their ranges."""

import argparse
import difflib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.config.describe import fields, flag
from experiments.config.yaml_values import parse_word
from experiments.errors import ConfigError
from experiments.foundation.numbers import is_number


class Parser(argparse.ArgumentParser):
    """A parser whose options have no abbreviations, and that says what a misspelt one may have been meant to be."""

    def __init__(self, prog: str, usage: str | None = None, description: str | None = None) -> None:
        formatter = argparse.ArgumentDefaultsHelpFormatter
        # An abbreviation such as --seed of --seeds would swallow the config's own key of that name.
        super().__init__(prog, usage, description, formatter_class=formatter, allow_abbrev=False)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The options of a command line without a config.

        Raises:
            ConfigError: An option is unknown.
        """
        options, rest = self.parse_known_args(arguments)
        self._refuse_unknown(rest, ())
        if rest:
            raise ConfigError(f"{' '.join(rest)}: unexpected, as no option takes it. See --help for the options.")
        return options

    def split(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The options, and what is left for the config: its file and its keys.

        Raises:
            ConfigError: An option is neither this parser's nor a config's.
        """
        options, rest = self.parse_known_args(arguments)
        self._refuse_unknown(rest, [flag(key) for key in fields()])
        return options, rest

    def _refuse_unknown(self, rest: Sequence[str], keys: Sequence[str]) -> None:
        own = [name for name in self._option_string_actions if name.startswith("--")]
        for word in rest:
            name = word.partition("=")[0].replace("_", "-")
            # A key of the config is no misspelling, however near an option it is: --seed beside --seeds.
            if not name.startswith("--") or name in keys:
                continue
            if close := difflib.get_close_matches(name, own, n=2, cutoff=0.7):
                raise ConfigError(f"{name}: unknown option. Did you mean {' or '.join(close)}?")
            # With a config its reader is asked next: it knows the keys that may have been meant.
            if not keys:
                raise ConfigError(f"{name}: unknown option. See --help for the options.")


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
        if is_number(value) and limit < value <= most:
            return float(value)
        limits = f"> {limit:g}" + (f" and <= {most:g}" if most < math.inf else "")
        raise argparse.ArgumentTypeError(f"expected a number {limits}, given {word!r}")

    return parse


def path(word: str) -> Path:
    """A path, `~` in it expanded: shells do not, in `--folder=~/here`."""
    try:
        return Path(word).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"expected a path, but there is no such home folder, given {word!r}") from None


def output_file(word: str) -> Path:
    """A file that can be written, so far as can be seen without making it: asked before what it is for is measured."""
    file = path(word)
    folder = file.absolute().parent
    if file.is_dir() or not folder.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise argparse.ArgumentTypeError(
            f"expected a file that may be written, in a folder that is there, given {word!r}"
        )
    return file


def _parsed(word: str) -> object:
    try:
        value = parse_word(word)
    except ValueError:
        return None
    # To isinstance a bool is an int: `yes` would pass for 1.
    return None if isinstance(value, bool) else value
