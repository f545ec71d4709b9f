"""Level sets: classify points of the plane by the level sets of MATLAB's peaks function (Guenther et al. 2020)."""

import functools
from typing import Literal

import numpy as np
from pydantic import Field

from experiments.errors import ConfigError
from experiments.foundation.section import Section
from experiments.problems.data import Data, DataSet, Picture

CLASSES = 5
REFERENCE_GRID = 256  # points per side of the grid whose extreme values define the classes, whatever grid is drawn from


class LevelSets(Section):
    """Points of the plane, classified by the level sets of MATLAB's peaks function."""

    name: Literal["level_sets"]
    train_per_class: int = Field(
        default=1000, ge=1, le=1_000_000, description="training points in each of the 5 classes"
    )
    validation_per_class: int = Field(
        default=800, ge=1, le=1_000_000, description="validation points in each class, disjoint"
    )
    grid_points: int = Field(default=256, ge=16, le=4096, description="grid points along each side of [-3, 3]^2")


def peaks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """MATLAB's peaks, elementwise."""
    return (
        3 * (1 - x) ** 2 * np.exp(-(x**2) - (y + 1) ** 2)
        - 10 * (x / 5 - x**3 - y**5) * np.exp(-(x**2) - y**2)
        - np.exp(-((x + 1) ** 2) - y**2) / 3
    )


def label(points: np.ndarray) -> np.ndarray:
    """The class of points: 5 intervals of equal width between the extreme values of peaks on the 256 x 256 grid.

    Args:
        points: (points, 2) in [-3, 3]^2.

    Returns:
        (points,) int32 from 0 (lowest) to 4 (highest).
    """
    # Inner edges only: on a finer grid some values may lie beyond the outer ones, and belong to the outer classes.
    return np.digitize(peaks(*points.T), _edges()[1:-1]).astype(np.int32)


@functools.cache
def _edges() -> np.ndarray:
    """The 6 edges of the classes: from -6.549719 to 8.105393."""
    values = peaks(*grid(REFERENCE_GRID).T)
    return np.linspace(values.min(), values.max(), CLASSES + 1)


def grid(points_per_side: int) -> np.ndarray:
    """The points of a regular grid of [-3, 3]^2, row by row from the lower left: (points_per_side^2, 2)."""
    side = np.linspace(-3.0, 3.0, points_per_side)
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)


def load(section: LevelSets, seed: int) -> Data:
    """Draw class-balanced, disjoint training and validation sets from the grid points.

    Validation points are drawn first, without replacement. Training points are drawn from the others, without
    replacement as well where the class has enough of them; where it has not, all of them are taken and the rest are
    repeats (with 1000 + 800 of the 256 x 256 grid's points this is the highest class, of 1798 points: 2 repeats).

    Args:
        section: How many points, and of which grid.
        seed: Of the draws and of the order of the points.

    Raises:
        ConfigError: A class has too few grid points for a validation set and at least one training point beside it.
    """
    random = np.random.default_rng(seed)
    points = grid(section.grid_points)
    labels = label(points)
    train, validation, repeats = [], [], 0
    for k in range(CLASSES):
        candidates = random.permutation(np.flatnonzero(labels == k))
        if len(candidates) <= section.validation_per_class:
            raise ConfigError(
                f"problem.validation_per_class = {section.validation_per_class}: expected fewer than the "
                f"{len(candidates)} grid points of class {k}, to leave some for training. Take fewer, or raise "
                f"problem.grid_points = {section.grid_points}."
            )
        rest = candidates[section.validation_per_class :]
        missing = max(0, section.train_per_class - len(rest))
        validation.append(candidates[: section.validation_per_class])
        train.append(np.concatenate([rest[: section.train_per_class], random.choice(rest, missing)]))
        repeats += missing
    train_set, validation_set = (
        DataSet(points[i], labels[i]) for i in map(random.permutation, map(np.concatenate, (train, validation)))
    )
    facts = (
        f"{CLASSES} x {section.train_per_class} training points ({repeats} repeats) and {CLASSES} x "
        f"{section.validation_per_class} others for validation, of a {section.grid_points} x {section.grid_points} grid"
    )
    everywhere = grid(REFERENCE_GRID)
    shape = (REFERENCE_GRID, REFERENCE_GRID)
    picture = Picture(everywhere, label(everywhere), np.arange(len(everywhere)), shape, (-3, 3, -3, 3))
    return Data(train_set, validation_set, tuple(map(str, range(CLASSES))), facts, "generated", picture)
