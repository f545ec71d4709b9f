"""The command line `CONFIG [--section.key VALUE ...]`: one option for every key of a config."""

import argparse
import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from experiments.config.describe import SCHEMA, Rule, expected, fields, flag, resolve, words
from experiments.errors import ConfigError

RESUMABLE = ("experiments.train",)  # programs that take --resume RUN in place of CONFIG
Parse = Callable[[str], Any]


def parse(arguments: Sequence[str], program: str, parse_word: Parse) -> tuple[str, dict[str, Any]]:
    """Split a command line into the config file's name and the overrides by dotted key.

    Args:
        arguments: The command line without the program's name; `_` and `-` are the same in options.
        program: The module that runs, for the usage line.
        parse_word: From one word to a value (ValueError: it is text).

    Raises:
        ConfigError: Unknown, repeated or incomplete options.
    """
    rules = fields()
    flags = [flag(key) for key in rules]
    tokens = [re.sub(r"^--[^=]+", lambda name: name[0].replace("_", "-"), token) for token in arguments]
    tokens = [re.sub(r"^(?=-[\d.])", " ", token) for token in tokens]  # or argparse takes -1e-3 for an option
    for token in tokens:
        name = token.partition("=")[0]
        if name.startswith("--") and name not in (*flags, "--help"):
            close = [known for known in flags if known.rpartition(".")[2] == name.rpartition(".")[2].lstrip("-")]
            close = close or difflib.get_close_matches(name, flags, n=2, cutoff=0.6)
            hint = f"Did you mean {' or '.join(close)}?" if close else "See --help for the options."
            raise ConfigError(f"{name}: unknown option. {hint}")
    given = vars(_parser(program).parse_args(tokens))
    if "CONFIG" not in given:
        raise ConfigError("CONFIG: missing; expected a YAML file first, such as configs/level_sets.yaml. See --help.")
    return given.pop("CONFIG"), {key: _value(value, rules[key], parse_word) for key, value in given.items()}


class _Once(argparse.Action):
    """Store a value, once."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        if hasattr(namespace, self.dest):
            raise ConfigError(f"{option_string}: given twice. Keep one of them.")
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^unrecognized arguments: (.*)", r"\1: unexpected, as no option takes it", message)
        raise ConfigError(f"{message.removeprefix('argument ')}. See --help for the options.")


def _parser(program: str) -> _Parser:
    parser = _Parser(
        prog=f"python -m {program}",
        usage="%(prog)s CONFIG [--key VALUE] [--section.key VALUE] ...",
        description="Run the experiment of a config file. Every key of the file can be overridden here.",
        epilog=f"Go on with an interrupted run: python -m {program} --resume RUN" if program in RESUMABLE else None,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=38, width=110),
    )
    parser.add_argument("CONFIG", nargs="?", help="YAML file, such as configs/level_sets.yaml")
    groups = {"": parser.add_argument_group("the run")}
    for key, rule in fields().items():
        section = key.rpartition(".")[0]
        if section not in groups:
            section_rule = SCHEMA["properties"][section]
            description = section_rule.get("description", resolve(section_rule)["description"])
            groups[section] = parser.add_argument_group(section, description)
        default = f"; default {words(rule['default'])}" if "default" in rule else ""
        default = f"; default as {key.replace('adjoint', 'solver')}" if section == "adjoint" else default
        metavar, several = _metavar(rule)
        groups[section].add_argument(
            flag(key),
            dest=key,
            action=_Once,
            nargs="+" if several else 1,
            metavar=metavar,
            help=f"{rule.get('description', 'what to train')} [{expected(rule)}{default}]".replace("%", "%%"),
        )
    return parser


def _metavar(rule: Rule) -> tuple[str, bool]:
    """A word for an option's value in the help, and whether it may be several words."""
    kinds = [kind for kind in rule.get("anyOf", [rule]) if kind.get("type") != "null"]
    first = kinds[0].get("items", kinds[0])
    several = any(kind.get("type") == "array" for kind in kinds)
    if "enum" in first or "const" in first:
        return "NAME", several
    return {"integer": "INT", "number": "FLOAT", "boolean": "BOOL", "string": "TEXT"}[first["type"]], several


def _value(given: list[str], rule: Rule, parse_word: Parse) -> Any:
    """The value of an option's words: several make a list, and text stays text."""
    kinds = {choice.get("type") for choice in rule.get("anyOf", [rule])}

    def one(word: str) -> Any:
        if "string" in kinds and not ("null" in kinds and word == "null"):
            return word
        try:
            return parse_word(word)
        except ValueError:
            return word

    values = [one(word) for word in given]
    return values[0] if len(values) == 1 else values
