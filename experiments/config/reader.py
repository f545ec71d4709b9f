"""Configs in one place: a YAML file, overridden from the command line, checked once, with readable errors.

File and command line are merged first and validated together by `experiments.schema.Config`, so that both give the same
messages: the key, the value, what was expected, and the remedy.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from experiments.config import command_line, rules, yaml_values
from experiments.config.describe import SCHEMA, Rule, expected, fields, flag, resolve, show, variant, words
from experiments.config.idle import idle as idle_keys
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.foundation.files import expanded, is_file, read_limited

LARGEST = 2**16  # bytes of a config; a whole one has 3000
FREE = ("iterations", "evaluation", "checkpoints", "backend", "output")  # what --resume may change
AUTO = Path("auto")  # as the run to resume: the one of output.folder, if there is one
QUIET = "output.quiet"  # changes nothing that is kept
PLACES = (
    "problem.folder",
    "problem.source",
    "problem.download",
    "problem.file",
    "problem.validation_file",
)  # of data, which a checksum binds


def read(arguments: Sequence[str], program: str) -> Config:
    """Read `CONFIG [--section.key VALUE ...]`.

    Args:
        arguments: The command line without the program's name.
        program: The module that runs, such as `experiments.train`, for the usage line.

    Raises:
        ConfigError: For a file that cannot be read, and for unknown, misplaced, wrong or contradictory keys.
    """
    file, overrides = command_line.parse(arguments, program, yaml_values.parse_word)
    return _checked(_load(expanded(file, "CONFIG")), overrides, file)


def read_run(arguments: Sequence[str], program: str) -> tuple[Config, Path | None]:
    """Read `CONFIG [--section.key VALUE ...]`, also with `--resume auto`, or `--resume RUN [--section.key VALUE ...]`.

    Returns:
        The config, and the folder of the run to go on with, if any; then only `PLACES` and keys under `FREE` may be
        given, and giving any of a free section's replaces the whole section.

    Raises:
        ConfigError: As in `read`; RUN is not the folder of a run, or a given key would change its training.
    """
    rest, folder = _resume(list(arguments))
    if folder is None:
        return read(rest, program), None
    if folder == AUTO:
        return _started_or_not(read(rest, program))
    file = folder / "config.yaml"
    if not is_file(file):
        raise ConfigError(
            f"--resume {folder}: expected the folder of a run, with its config.yaml. Name one under runs/."
        )
    # The run's own file takes the place of CONFIG, which the parser expects; absolute, as a name may begin with a dash.
    overrides = command_line.parse([str(file.absolute()), *rest], program, yaml_values.parse_word)[1]
    for key in overrides:
        # The section output is free, but its folder is what --resume names.
        if (key.partition(".")[0] not in FREE and key not in PLACES) or key == "output.folder":
            raise ConfigError(
                f"{flag(key)} {words(overrides[key])}: expected not to be given with --resume, as it would be another "
                f"training. Leave it out; what may be given: {', '.join(flag(key) for key in (*FREE, *PLACES))}."
            )
    values = _load(file)
    # The run's file holds every key: its old backend.devices would contradict a new backend.kind.
    for section in {key.partition(".")[0] for key in overrides if "." in key and key not in (*PLACES, QUIET)}:
        values.pop(section, None)
    return _checked(values, {**overrides, "output.folder": str(folder)}, str(file)), folder


def _started_or_not(config: Config) -> tuple[Config, Path | None]:
    """What `--resume auto` means: to go on with the run of `output.folder`, or to begin it.

    The config is the one that is given, also for a run that goes on; its checkpoints refuse that of another training.
    """
    if config.output.folder is None:
        raise ConfigError(
            "--resume auto: expected --output.folder with it, the same whenever it is started: a run there goes on, "
            "else it begins."
        )
    folder = expanded(config.output.folder, "output.folder")
    # A run that was ended while its folder was being made has but empty files.
    inside = list(folder.iterdir()) if folder.is_dir() else []
    begun = any(file.name == "config.yaml" for file in inside)
    barely = bool(inside) and all(file.is_file() and file.stat().st_size == 0 for file in inside)
    return config, folder if begun or barely else None


def _resume(words: list[str]) -> tuple[list[str], Path | None]:
    """Take `--resume RUN` out of a command line."""
    given = [i for i, word in enumerate(words) if word == "--resume" or word.startswith("--resume=")]
    if not given:
        return words, None
    if len(given) > 1:
        raise ConfigError("--resume: given twice. Keep one of them.")
    before, (first, *rest) = words[: given[0]], words[given[0] :]
    if first == "--resume" and (not rest or rest[0].startswith("--")):
        raise ConfigError("--resume: expected the folder of a run after it, such as runs/level_sets-20260101-120000.")
    name = rest.pop(0) if first == "--resume" else first.partition("=")[2]
    return [*before, *rest], expanded(name, "--resume")


def _checked(values: dict[str, Any], overrides: dict[str, Any], file: str) -> Config:
    """The config of a file's values and the command line's."""
    for key, value in overrides.items():
        _put(values, key, value)
    config = _validate(values, file)
    # Asked of the command line only: the file that a run has written holds all keys, idle ones too.
    idle = idle_keys(config)
    if wrong := rules.problems(config) + [
        f"{flag(key)} {words(overrides[key])}: expected not to be given, as it has no effect with {idle[key]}. "
        f"Leave it out, or change {idle[key].split()[0]}."
        for key in overrides
        if key in idle
    ]:
        raise ConfigError("\n".join(wrong))
    return config


def text(config: Config) -> str:
    """The resolved config, every key given, as the text of a file that `read` takes."""
    return yaml_values.text(config.model_dump())


def write(config: Config, path: Path) -> None:
    """Write the resolved config as a file that `read` takes."""
    path.write_text(text(config), encoding="utf-8")


def _load(path: Path) -> dict[str, Any]:
    """The keys and values of a file."""
    try:
        values = yaml_values.parse(read_limited(path, LARGEST, pipes=True).decode())
    except FileNotFoundError:
        known = ", ".join(map(str, sorted(Path("configs").glob("*.yaml")))) or "none under configs/ from here"
        raise ConfigError(f"{path}: no such file. Configs here: {known}.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}. Give the path of a YAML file.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected a YAML text file in UTF-8. Is this the right file?") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        # RecursionError: brackets nested by the thousand; ValueError: more digits than Python makes an integer of.
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "cannot be parsed"
        if isinstance(error, yaml.reader.ReaderError):
            problem = f"character {error.position + 1} has code {error.character}, which a text has not"
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: not valid YAML: {problem}. Correct it there.") from None
    if values is None:
        raise ConfigError(f"{path}: the file is empty; expected keys such as problem: {{name: level_sets}}.")
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected keys and values at the top, found {show(values)}. Write `key: value` lines."
        )
    return values


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key."""
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{section} = {show(values)}: expected a section with keys below it. Correct the file.")
    values[name] = value


def _validate(values: dict[str, Any], file: str) -> Config:
    try:
        return Config.model_validate(values)
    except (ValidationError, RecursionError) as error:
        details = error.errors() if isinstance(error, ValidationError) else []
        # Pydantic complains of each choice of a union; in our words they are the same, and said once.
        lines = dict.fromkeys(_message(detail, values) for detail in details)
        raise ConfigError("\n".join(lines) or f"{file}: nested too deeply. Write plain sections.") from None


def _message(detail: Any, values: dict[str, Any]) -> str:
    """One of pydantic's complaints as key, value, expectation and remedy."""
    rule: Rule = SCHEMA
    keys: list[str] = []
    value: Any = values
    beyond = None
    for part in detail["loc"]:
        # The tag of a variant is a part of pydantic's path, but no key of the file.
        if chosen := variant(rule, part):
            rule = chosen
            continue
        properties = resolve(rule).get("properties", {})
        if part not in properties:
            beyond = part
            break
        keys.append(part)
        # `...` stands for what is missing: None is a value that a key may have.
        rule, value = properties[part], value.get(part, ...) if isinstance(value, dict) else ...
    if detail["type"].startswith("union_tag"):
        name = rule["discriminator"]["propertyName"]
        keys, rule, value = [*keys, name], resolve(rule)["properties"][name], value.get(name, ...)
    key = ".".join(keys)
    if detail["type"] in ("extra_forbidden", "invalid_key"):
        return _unknown(key, str(beyond), list(resolve(rule)["properties"]))
    if value is ...:
        return f"{key}: missing; expected {expected(rule)}. Add it to the file."
    plain = "properties" not in resolve(rule) and "default" in rule
    remedy = f"For example {flag(key)} {words(rule['default'])}, the default." if plain else "Correct it in the file."
    if detail["type"] == "string_unicode":
        remedy = "It is not text in this environment's encoding: set PYTHONUTF8=1, or give another name."
    # `name: 2026` is a number to YAML, and the schema converts nothing.
    if detail["type"] == "string_type" and isinstance(value, int | float):
        remedy = "Write it in quotes."
    return f"{key} = {show(value)}: expected {expected(rule)}. {remedy}"


def _unknown(section: str, name: str, known: list[str]) -> str:
    """What to say of an unknown key: where it may belong, or what it may be a misspelling of."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    given = f"{section}.{name}".lstrip(".")
    if (whole := given.replace("-", "_")) in fields() and "." in name:
        *sections, key = whole.split(".")
        nested = f"{': {'.join(sections)}: {{{key}: ...{'}' * len(sections)}"
        return f"{given}: dotted keys are for the command line ({flag(whole)} ...). In a file write {nested}."
    close = close or [field for field in fields() if field.rpartition(".")[2] == name and field != given]
    hint = f"Did you mean {' or '.join(close)}?" if close else "Leave it out."
    # By `show`, since a key of the file may be long, or hold what a terminal takes for commands.
    return f"{show(given)[1:-1]}: unknown key. {hint} Known here: {', '.join(known)}."
