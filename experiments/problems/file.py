"""Data of the user's own: a .npz file of arrays, a .csv file with named columns, or a function that returns arrays."""

import csv
import difflib
import hashlib
import io
import re
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from experiments.errors import ConfigError
from experiments.foundation.files import expanded, is_file
from experiments.foundation.functions import Function, own_function
from experiments.foundation.section import FolderName, Section
from experiments.problems import points, sources
from experiments.problems.data import Data
from experiments.problems.points import Points

Targets = Annotated[list[str], Field(min_length=1)] | None
Share = Annotated[float, Field(gt=0, lt=1)]


class File(Section):
    """Points in a file, with the class of each, or numbers to be predicted."""

    name: Literal["file"]
    file: FolderName = Field(description="training points: .npz with arrays, or .csv (.csv.gz) with named columns")
    validation_file: FolderName | None = Field(
        default=None, description="validation points in the same form; null: held out of the training points"
    )
    inputs: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="columns of a .csv (null: all but the label), or the array of a .npz (null: x)"
    )
    label: str = Field(default="y", description="column or array of the classes, integers or texts")
    targets: Targets = Field(
        default=None, description="columns, or the array of a .npz, of numbers to predict; null: classes are predicted"
    )
    validation_share: Share = Field(default=0.2, description="of the points, held out class by class")
    standardise: bool = Field(
        default=True, description="each feature less its mean over its standard deviation, of the training points"
    )


class Own(Section):
    """Points that a function of the user's own returns."""

    name: Literal["function"]
    function: Function = Field(description="(seed) -> (x, y, x_validation, y_validation), arrays with a point per row")
    targets: Targets = Field(default=None, description="names of the columns of y, numbers to predict; null: classes")
    standardise: bool = Field(default=False, description="as in a file's")


def load(section: File, seed: int) -> Data:
    """Read points from files.

    Args:
        section: Which files, and what in them.
        seed: Of the choice of what is held out.

    Raises:
        ConfigError: A file that cannot be read, or holds something else.
    """
    digest = hashlib.sha256()
    if section.targets is None and section.label in (section.inputs or ()):
        raise ConfigError(
            f"problem.inputs = {section.inputs}: expected columns without the label {section.label!r}, which is to be "
            "predicted. Leave it out."
        )
    train = _read(section, "file", digest)
    validation = None
    if section.validation_file is not None:
        validation = _read(section.model_copy(update={"inputs": _names(section)}), "validation_file", digest)
    return points.data(
        train,
        validation,
        section.validation_share,
        section.standardise,
        section.file,
        seed,
        digest.hexdigest(),
        section.targets,
    )


def call(section: Own, seed: int) -> Data:
    """Take the points that a function returns.

    Raises:
        ConfigError: It cannot be imported, or returns something else.
    """
    function = own_function(section.function, "problem.function", "problem")
    try:
        # As arrays at once: what cannot be one (a ragged list, a tensor on a device) says so while it becomes one.
        x, y, x_validation, y_validation = map(_array, function(seed))
    except (Exception, SystemExit) as error:  # a user's program may raise anything
        raise ConfigError(
            f"problem.function = {section.function!r}: expected it to return (x, y, x_validation, y_validation): "
            f"{type(error).__name__}: {error}."
        ) from None
    given = (x, y), (x_validation, y_validation)
    return points.data(*given, 0.0, section.standardise, section.function, seed, targets=section.targets)


def _array(values: object) -> np.ndarray:
    """Values as an array of numbers or texts, all of them valid."""
    if np.ma.is_masked(values):  # NumPy would take what lies behind the mask
        raise ValueError("an array has masked values")
    return np.asarray(values)


def _read(section: File, key: str, digest: "hashlib._Hash") -> Points:
    path = expanded(getattr(section, key), f"problem.{key}")
    if not is_file(path):
        raise ConfigError(f"problem.{key} = {str(path)!r}: no such file. Name a .npz or .csv file.")
    # Of the uncompressed bytes: packing a file does not make it another.
    digest.update(sources.read_bytes(path))
    if path.suffix.lower() == ".npz":
        name = "x" if section.inputs is None else section.inputs[0]
        if section.inputs is not None and len(section.inputs) > 1:
            raise ConfigError(f"problem.inputs = {section.inputs}: expected one array of {path}. Name one.")
        if section.targets is not None and len(section.targets) > 1:
            raise ConfigError(f"problem.targets = {section.targets}: expected one array of {path}. Name one.")
        return sources.read_array(path, name), sources.read_array(path, (section.targets or [section.label])[0])
    if _is_csv(path):
        return read_csv(path, section.inputs, section.label, section.targets)
    raise ConfigError(f"problem.{key} = {str(path)!r}: expected a .npz or .csv file. Save it as one of them.")


def read_inputs(path: Path, section: File | None, width: int) -> np.ndarray:
    """The inputs of a file without labels, as a trained network takes them but for their scale.

    Args:
        path: A .npz, .npy or .csv file.
        section: Of the training, which says what the columns are.
        width: How many features a point has, where no columns are named: so many first ones.

    Raises:
        ConfigError: It cannot be read, or holds something else.
    """
    if not is_file(path):
        raise ConfigError(f"--input {path}: no such file. Name a .npz, .npy or .csv file.")
    if path.suffix.lower() in (".npz", ".npy"):
        return sources.read_array(path, section.inputs[0] if section and section.inputs else "x")
    names = _names(section) if section else None
    header, rows = _columns(path)
    if names is None and all(map(_is_number, header)):
        raise sources.corrupt(path, f"expected names of columns in its first line, found {', '.join(header)[:200]}")
    return _numbers(path, header, rows, names or header[:width])


def _names(section: File) -> list[str] | None:
    """The columns that are trained on, by name: another file may have more of them, in another order."""
    path = expanded(section.file, "problem.file")
    if section.inputs is not None or not _is_csv(path):
        return section.inputs
    header = _columns(path)[0]
    return [name for name in header if name not in (section.targets or [section.label])]


def read_csv(path: Path, inputs: list[str] | None, label: str, targets: list[str] | None = None) -> Points:
    """The inputs, (points, columns), and labels, (points,), of a .csv file whose first line names its columns.

    With targets their columns, (points, targets), stand for the labels.
    """
    header, rows = _columns(path)
    names = inputs or [name for name in header if name not in (targets or [label])]
    if targets:
        return _numbers(path, header, rows, names), _numbers(path, header, rows, targets, "problem.targets")
    place = _place(path, header, label, "problem.label")
    words = [row[place].strip() for row in rows.values()]
    numbers = all(map(_is_number, words))
    for line, word in zip(rows, words, strict=True):
        # Among numbers `nan` is what programs write for one that they do not have.
        if not word or (numbers and word.lower() == "nan"):
            raise ConfigError(
                f"{path}: line {line}, column {label!r}: expected a label, found {word or 'none'}. Give it, or leave "
                "the line out."
            )
    return _numbers(path, header, rows, names), _labels(words)


def _is_csv(path: Path) -> bool:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return suffixes[-1:] == [".csv"] or suffixes[-2:] == [".csv", ".gz"]


def _columns(path: Path) -> tuple[list[str], dict[int, list[str]]]:
    """The names in the first line, and the values in each further one that is not empty, by its number."""
    try:
        # Spreadsheets write a byte order mark, which would become a part of the first name.
        text = sources.read_bytes(path).decode("utf-8-sig")
        # Not strict, a quotation mark without its partner would take the rest of the file for one value.
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        rows = dict((reader.line_num, row) for row in reader if row)
    except csv.Error as error:
        raise sources.corrupt(path, f"line {reader.line_num}: expected values between commas: {error}") from None
    except UnicodeDecodeError:
        raise sources.corrupt(path, "expected a .csv file in UTF-8 whose first line names its columns") from None
    if not rows:
        raise sources.corrupt(path, "expected a .csv file whose first line names its columns, found an empty one")
    header = [name.strip() for name in rows.pop(next(iter(rows)))]
    if len(header) == 1 and (marks := [mark for mark in ";\t|" if mark in header[0]]):
        raise sources.corrupt(path, f"expected commas between columns, found {marks[0]!r}: save it with commas")
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise sources.corrupt(path, f"the column {twice!r} is there twice")
    if not rows:
        raise sources.corrupt(path, "expected lines of values after the first")
    for line, row in rows.items():
        if len(row) != len(header):
            raise sources.corrupt(path, f"line {line} has {len(row)} values, expected {len(header)}")
    return header, rows


def _place(path: Path, header: list[str], name: str, key: str) -> int:
    if name not in header:
        close = difflib.get_close_matches(name, header, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{key}: no column {name!r} in {path}, which has {', '.join(header)[:200]}.{hint}")
    return header.index(name)


def _numbers(
    path: Path, header: list[str], rows: dict[int, list[str]], names: list[str], key: str = "problem.inputs"
) -> np.ndarray:
    known = {name: place for place, name in enumerate(header)}  # `_place` would go through them all for each
    places = [known[name] if name in known else _place(path, header, name, key) for name in names]
    values = np.empty((len(rows), len(places)))
    for i, (line, row) in enumerate(rows.items()):
        for j, place in enumerate(places):
            try:
                values[i, j] = _number(row[place])
            except ValueError:
                raise ConfigError(
                    f"{path}: line {line}, column {names[j]!r}: expected a number, found {row[place][:40]!r}. Correct "
                    f"it, or name other columns: {key}."
                ) from None
    return values


def _number(word: str) -> float:
    """The number of a word, as every program reads it: Python alone takes 1_000 and digits of all scripts.

    Raises:
        ValueError: It is none.
    """
    if "_" in word or not word.isascii():
        raise ValueError(word)
    return float(word)


def _is_number(word: str) -> bool:
    try:
        _number(word)
    except ValueError:
        return False
    return True


def _labels(words: list[str]) -> np.ndarray:
    """Integers where all of them are, and different words different ones, else texts: 01 and 1 are two classes."""
    if all(re.fullmatch("[-+]?[0-9]{1,18}", word) for word in words):
        numbers = np.array([int(word) for word in words])
        if len(set(words)) == len(np.unique(numbers)):
            return numbers
    return np.array(words)
