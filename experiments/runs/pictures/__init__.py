"""Pictures of a run: loss and accuracy, residual norms, and what the network makes of its points."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from experiments.foundation.drawing import Figure
from experiments.problems import Data
from experiments.runs.files import write_whole
from experiments.runs.pictures import classes
from experiments.runs.pictures.curves import (
    OF_CLASSES,
    OF_NUMBERS,
    Judged,
    Rows,
    column,
    predictions,
    residuals,
    training,
)

__all__ = ["Judged", "draw", "residuals", "training"]

Predict = Callable[[np.ndarray], np.ndarray]


def draw(folder: Path, rows: Rows, data: Data, predict: Predict, judged: Judged | None = None) -> None:
    """Draw all pictures of a run into its folder.

    Args:
        folder: Where `training.png`, `confusion.png` and, for a multigrid run, `residuals.png` go; `class_map.png`
            where the points are the pixels of a picture, `misclassified.png` where they are images themselves; of
            numbers `predictions.png` instead of these.
        rows: The metrics.
        data: What was trained on.
        predict: From inputs (points, ...) to classes (points,), or numbers (points, targets), by the exactly evaluated
            network.
        judged: How gradients were judged on the way; None: nothing is known of it.
    """
    figures = {"training": training(rows, OF_NUMBERS if data.scale is not None else OF_CLASSES)}
    if (column(rows, "residual_norm") > 0).any():  # sequential training has none
        figures["residuals"] = residuals(rows, judged)
    if data.scale is not None:
        true, predicted = (
            y * data.scale.deviation + data.scale.mean for y in (data.validation.y, predict(data.validation.x))
        )
        return _write(folder, figures | {"predictions": predictions(true, predicted, data.names)})
    if data.is_text:  # of characters, confusions tell nothing that a sample does not
        return _write(folder, figures)
    predicted = predict(data.validation.x)
    figures["confusion"] = classes.confusion(data.validation.y, predicted, data.names)
    if data.picture is not None:
        figures["class_map"] = classes.class_map(data.picture, predict(data.picture.x), data.names)
    if data.validation.x.ndim == 4:
        figures["misclassified"] = classes.misclassified(data.validation, predicted, data.names)
    _write(folder, figures)


def _write(folder: Path, figures: Mapping[str, Figure]) -> None:
    for name, figure in figures.items():
        # Drawn in memory, so that a full disk leaves the picture of before rather than half a new one.
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=150)
        write_whole(folder / f"{name}.png", file.getvalue())
