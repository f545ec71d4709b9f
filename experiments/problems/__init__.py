"""The problems of the experiments: each module loads its data as `Data`; `load` finds it by the config's section."""

from experiments.problems import level_sets
from experiments.problems.data import Data, DataSet
from experiments.schema import LevelSets

__all__ = ["Data", "DataSet", "load"]


def load(section: LevelSets, seed: int) -> Data:
    """Load the data of a config's `problem` section.

    Args:
        section: The section; its type names the problem.
        seed: Of the choice of training and validation points.

    Raises:
        experiments.config.ConfigError: The data cannot be had as asked.
    """
    return level_sets.load(section, seed)
