"""The level-set data: the rule, the balance of the classes, and that no validation point is trained on."""

import os
from pathlib import Path

import numpy as np
import pytest

from experiments.config.schema import LevelSets
from experiments.errors import ConfigError
from experiments.problems import level_sets

DATA = Path(os.environ.get("JAXMGRIT_DATA", "shared/data"))
SECTION = LevelSets(name="level_sets")


def rows(x):
    return {tuple(point) for point in x.tolist()}


def test_labels_are_those_of_the_published_points():
    file = DATA / "level_sets" / "reference_points.npz"
    if not file.exists():
        pytest.skip(f"no {file}: set JAXMGRIT_DATA to the folder with the published points")
    with np.load(file) as reference:
        for part in ("train", "validation"):
            np.testing.assert_array_equal(level_sets.label(reference[f"x_{part}"]), reference[f"y_{part}"])


def test_peaks_at_known_points():
    """Values of MATLAB's peaks: at the origin, and its extreme values on the 256 x 256 grid."""
    values = level_sets.peaks(*level_sets.grid(256).T)
    assert level_sets.peaks(np.zeros(1), np.zeros(1)) == pytest.approx(3 * np.exp(-1) - np.exp(-1) / 3)
    assert (values.min(), values.max()) == pytest.approx((-6.549719, 8.105393), abs=1e-6)


def test_sets_are_balanced_and_disjoint():
    data = level_sets.load(SECTION, seed=0)
    assert np.bincount(data.train.y).tolist() == [1000] * 5
    assert np.bincount(data.validation.y).tolist() == [800] * 5
    assert not rows(data.train.x) & rows(data.validation.x)
    assert len(rows(data.validation.x)) == 4000
    assert len(rows(data.train.x)) == 4998  # the highest class has 1798 grid points, two fewer than asked for
    assert "2 repeats" in data.facts
    for part in (data.train, data.validation):
        np.testing.assert_array_equal(level_sets.label(part.x), part.y)
        assert np.abs(part.x).max() <= 3


def test_the_seed_decides():
    first, again, other = (level_sets.load(SECTION, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.train.x, again.train.x)
    assert not np.array_equal(first.train.x, other.train.x)


def test_too_few_points_are_refused():
    with pytest.raises(ConfigError, match=r"validation_per_class = 1798: expected fewer than the 1798 .* class 4"):
        level_sets.load(LevelSets(name="level_sets", validation_per_class=1798), seed=0)
    with pytest.raises(ConfigError, match=r"or raise problem\.grid_points = 16"):
        level_sets.load(LevelSets(name="level_sets", grid_points=16), seed=0)
