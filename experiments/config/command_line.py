"""The command line `CONFIG [--section.key VALUE ...]`: one option for every key of a config."""

import argparse
import difflib
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from experiments.config.describe import SCHEMA, Rule, expected, fields, flag, resolve, words
from experiments.errors import ConfigError

RESUMABLE = ("experiments.train",)  # programs that take --resume RUN in place of CONFIG
SHORT = {"--quiet": ("--output.quiet", "true")}  # options that stand for others
HELP = ("-h", "--help", "--help-all")
COMMON = (  # what --help shows; --help-all shows all keys
    "seed",
    "iterations",
    "network.layers",
    "network.width",
    "optimizer.learning_rate",
    "training.method",
    "training.schedule",
    "training.batch_size",
    "solver.coarsening_factor",
    "backend.kind",
    "backend.devices",
    "output.folder",
)
EXAMPLES = """examples:
  python -m {0} configs/level_sets.yaml
  python -m {0} configs/level_sets.yaml --network.layers 256 --optimizer.learning-rate 0.02
  python -m {0} configs/level_sets.yaml --backend.devices 2 --output.folder runs/two
  mpirun -n 2 python -m {0} configs/level_sets.yaml --backend.kind mpi"""
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
    tokens = [word for given in arguments for word in SHORT.get(given, (given,))]
    # Up to = only: a value may be a path with underscores.
    tokens = [re.sub(r"^--[^=]+", lambda name: name[0].replace("_", "-"), token) for token in tokens]
    tokens = [re.sub(r"^(?=-[\d.])", " ", token) for token in tokens]  # or argparse takes -1e-3 for an option
    # Looked at before argparse is, which suggests nothing for an unknown option.
    for token in tokens:
        name = token.partition("=")[0]
        if token in HELP:
            print(_parser(program, everything=token == "--help-all").format_help())
            raise SystemExit(0)
        if name.startswith("--") and name not in flags:
            close = _close(name, flags)
            hint = f"Did you mean {' or '.join(close)}?" if close else "See --help for the options."
            raise ConfigError(f"{name}: unknown option. {hint}")
    given = vars(_parser(program).parse_args(tokens))
    if "CONFIG" not in given:
        raise ConfigError("CONFIG: missing; expected a YAML file first, such as configs/level_sets.yaml. See --help.")
    return given.pop("CONFIG"), {key: _value(value, rules[key], parse_word) for key, value in given.items()}


def _close(name: str, flags: list[str]) -> list[str]:
    """The options that a misspelt one may have been meant to be, or one without its section."""
    last = name.lstrip("-").rpartition(".")[2]
    keys = {known: known.lstrip("-").rpartition(".")[2] for known in flags}
    if close := [known for known, key in keys.items() if key == last]:
        return close
    if "." not in name:
        likely = difflib.get_close_matches(last, list(keys.values()), n=1, cutoff=0.75)
        close = [known for known, key in keys.items() if key in likely]
    return close or difflib.get_close_matches(name, [*flags, *SHORT, "--resume"], n=2, cutoff=0.7)


class _Once(argparse.Action):
    """Store a value, once."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        # Without defaults (SUPPRESS) there is no attribute until the option has been given.
        if hasattr(namespace, self.dest):
            raise ConfigError(f"{option_string}: given twice. Keep one of them.")
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^unrecognized arguments: (.*)", r"\1: unexpected, as no option takes it", message)
        raise ConfigError(f"{message.removeprefix('argument ')}. See --help for the options.")


def _parser(program: str, everything: bool = True) -> _Parser:
    """The options of a program; their help tells of all keys, or of the common ones."""
    sections = ", ".join(SCHEMA["properties"])
    epilog = EXAMPLES.format(program)
    if program in RESUMABLE:
        epilog += f"\n  python -m {program} --resume RUN             go on with an interrupted run"
        epilog += f"\n  python -m {program} CONFIG --resume auto --output.folder FOLDER    go on there, or begin"
    if not everything:
        epilog += "\n\n" + textwrap.fill(f"--help-all: every key, of {sections}", 110)
    parser = _Parser(
        prog=f"python -m {program}",
        usage="%(prog)s CONFIG [--key VALUE] [--section.key VALUE] ...",
        description="Run the experiment of a config file. Every key of the file can be overridden here.",
        epilog=epilog,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=38, width=110),
    )
    parser.add_argument("CONFIG", nargs="?", help="YAML file, such as configs/level_sets.yaml")
    groups = {"": parser.add_argument_group("the run")}
    groups[""].add_argument("--quiet", action="store_true", help="print only what is wrong, and how it ends")
    for key, rule in fields().items():
        section = key.rpartition(".")[0]
        shown = everything or key in COMMON
        if section not in groups and not everything:
            groups[section] = groups[""]
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
            # In help texts argparse expands %, so those that are meant are doubled.
            help=f"{rule.get('description', 'what to train')} [{expected(rule)}{default}]".replace("%", "%%")
            if shown
            else argparse.SUPPRESS,
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
        # Text is not parsed: a run may be named 010 or yes. Only null is still null.
        if "string" in kinds and not ("null" in kinds and word == "null"):
            return word
        try:
            return parse_word(word)
        except ValueError:
            return word

    values = [one(word) for word in given]
    return values[0] if len(values) == 1 else values
