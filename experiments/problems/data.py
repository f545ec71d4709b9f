"""What a problem's data are, whatever the problem."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.errors import ConfigError


class DataSet(NamedTuple):
    """Inputs and labels.

    Attributes:
        x: Inputs, (points, features) or (points, height, width, channels), floating-point; or characters' numbers,
            (points, context), integers.
        y: Labels, (points,), integers from 0; of characters (points, context); or numbers to be predicted, (points,
            targets), floating-point.
    """

    x: np.ndarray
    y: np.ndarray


class Picture(NamedTuple):
    """A picture each of whose pixels is a point that can be classified, or none.

    Attributes:
        x: Inputs of the pixels, (points, features).
        y: Their true labels, (points,).
        pixels: Where they are: flat indices into the picture, (points,).
        shape: Rows and columns of the picture.
        extent: For a map of the plane, the first row at the bottom: left, right, bottom, top. None: a photograph.
        validation: Which points are those of the validation set, (points,) booleans; None: pixels are no points of it.
    """

    x: np.ndarray
    y: np.ndarray
    pixels: np.ndarray
    shape: tuple[int, int]
    extent: tuple[float, float, float, float] | None = None
    validation: np.ndarray | None = None


class Scale(NamedTuple):
    """From the numbers a network predicts to their own units: y * deviation + mean.

    Attributes:
        mean: Of the training points' targets, (targets,).
        deviation: Their standard deviation, (targets,).
    """

    mean: np.ndarray
    deviation: np.ndarray


class Data(NamedTuple):
    """A problem's data.

    Attributes:
        train: What is trained on.
        validation: What is only evaluated, disjoint from `train`.
        names: The classes' names; or the targets'.
        facts: One line about what was loaded, for the user.
        source: One line about where it was found.
        picture: The picture that the points are pixels of, None if there is none.
        augment: From training inputs and a random generator to inputs that are as good; None: they are used as they
            are.
        sha256: Checksum of the file they were read from; "" where none is recorded.
        prepare: From inputs as files have them to the network's; None: they are the same.
        scale: Of the numbers that are predicted; None: classes are.
    """

    train: DataSet
    validation: DataSet
    names: tuple[str, ...]
    facts: str
    source: str
    picture: Picture | None = None
    augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None
    sha256: str = ""
    prepare: Callable[[np.ndarray], np.ndarray] | None = None
    scale: Scale | None = None

    @property
    def classes(self) -> int:
        """How many classes there are; or targets."""
        return len(self.names)

    @property
    def is_text(self) -> bool:
        """Whether points are pieces of a text, with a label for every character."""
        return self.train.y.ndim > 1 and self.scale is None


def cast(x: np.ndarray, dtype: str) -> np.ndarray:
    """Inputs or labels in the precision of a training; classes and the numbers of characters stay integers."""
    return x if x.dtype.kind in "iu" else x.astype(dtype, copy=False)


def stratified(labels: np.ndarray, sizes: tuple[int, ...], random: np.random.Generator) -> list[np.ndarray]:
    """Disjoint random sets of points, in each of which the classes have their share of the whole.

    Args:
        labels: (points,), integers from 0.
        sizes: How many points each set gets; together at most `points`.
        random: Of the choice and of the order of the points in their sets.

    Returns:
        The sets, as indices into `labels`.
    """
    order = random.permutation(len(labels))
    counts = np.bincount(labels)
    # Class after class, each in this order: not a pass over all points for every class, of which there may be many.
    grouped = order[np.argsort(labels[order], kind="stable")]
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    position = np.empty(len(labels))
    position[grouped] = (rank + 0.5) / np.repeat(counts, counts)
    # Points in the order of their rank within their class, relative to its size: any stretch is in proportion.
    ranked = order[np.argsort(position[order], kind="stable")]
    # Ranks make the classes alternate, so every set is shuffled; the rest behind the last set was not asked for.
    return [random.permutation(part) for part in np.split(ranked, np.cumsum(sizes))[: len(sizes)]]


def check_classes(names: tuple[str, ...], labels: np.ndarray, what: str, remedy: str) -> None:
    """Raise a ConfigError if a class has no point in a set.

    Args:
        names: The classes' names.
        labels: The set's, from 0.
        what: The set, beginning with the key that decides about it.
        remedy: What to do.
    """
    absent = [name for name, count in zip(names, np.bincount(labels, minlength=len(names)), strict=True) if count == 0]
    if absent:
        raise ConfigError(
            f"{what}: expected points of every class, but there are none of {', '.join(absent)}. {remedy}"
        )
