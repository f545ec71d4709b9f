"""What a problem's data are, whatever the problem."""

from typing import NamedTuple

import numpy as np


class DataSet(NamedTuple):
    """Inputs and labels.

    Attributes:
        x: Inputs, (points, ...), float64.
        y: Labels, (points,), integers from 0.
    """

    x: np.ndarray
    y: np.ndarray


class Data(NamedTuple):
    """A problem's data.

    Attributes:
        train: What is trained on.
        validation: What is only evaluated, disjoint from `train`.
        classes: How many classes there are.
        facts: One line about what was loaded, for the user.
    """

    train: DataSet
    validation: DataSet
    classes: int
    facts: str
