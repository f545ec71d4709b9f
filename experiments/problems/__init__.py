"""The problems of the experiments: each module loads its data as `Data`; `load` finds it by the config's section."""

from collections.abc import Callable
from typing import Any

from experiments.problems import file, indian_pines, level_sets, mnist, text
from experiments.problems.data import Data, DataSet, Picture
from experiments.problems.file import File, Own
from experiments.problems.indian_pines import IndianPines
from experiments.problems.level_sets import LevelSets
from experiments.problems.mnist import Mnist
from experiments.problems.text import Text

__all__ = ["Data", "DataSet", "Picture", "load"]

LOADERS: dict[type, Callable[[Any, int], Data]] = {
    LevelSets: level_sets.load,
    IndianPines: indian_pines.load,
    Mnist: mnist.load,
    Text: text.load,
    File: file.load,
    Own: file.call,
}


def load(section: LevelSets | IndianPines | Mnist | Text | File | Own, seed: int) -> Data:
    """Load the data of a config's `problem` section.

    Args:
        section: The section; its type names the problem.
        seed: Of the choice of training and validation points.

    Raises:
        experiments.errors.ConfigError: The data cannot be had as asked.
    """
    return LOADERS[type(section)](section, seed)
