"""Pictures of a run: loss and accuracy, residual norms, and what the network makes of its points."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.foundation.drawing import Axes, Figure
from experiments.problems import Data
from experiments.runs.files import write_whole
from experiments.runs.pictures import classes

Rows = Sequence[Mapping[str, Any]]
Predict = Callable[[np.ndarray], np.ndarray]

SMOOTHED = 10  # iterations
INEXACT, TRAIN, VALIDATION, ADJOINT = "#9ab8d6", "#1f5a96", "#d1622b", "#d1622b"


def draw(folder: Path, rows: Rows, data: Data, predict: Predict) -> None:
    """Draw all pictures of a run into its folder.

    Args:
        folder: Where `training.png`, `confusion.png` and, for a multigrid run, `residuals.png` go; `class_map.png`
            where the points are the pixels of a picture, `misclassified.png` where they are images themselves.
        rows: The metrics.
        data: What was trained on.
        predict: From inputs (points, ...) to classes (points,) by the exactly evaluated network.
    """
    figures = {"training": training(rows)}
    if (_column(rows, "residual_norm") > 0).any():  # sequential training has none
        figures["residuals"] = residuals(rows)
    if data.validation.y.ndim > 1:  # of characters, confusions tell nothing that a sample does not
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


def training(rows: Rows) -> Figure:
    """Loss and accuracy over iterations: as training sees them, and by exact evaluation."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, quantity, scale in ((left, "loss", 1), (right, "accuracy", 100)):
        for label, key, style in (
            ("inexact, as training sees it", f"inexact_{quantity}", {"color": INEXACT, "lw": 1.5}),
            ("exact, training points", f"exact_train_{quantity}", {"color": TRAIN, "marker": ".", "lw": 1}),
            ("exact, validation points", f"exact_validation_{quantity}", {"color": VALIDATION, "marker": ".", "lw": 1}),
        ):
            iterations, values = _series(rows, key)
            if key.startswith("inexact") and len(values) > 10 * SMOOTHED:
                # Of mini-batches: the noise stays in sight, behind its mean over some iterations.
                axes.plot(iterations, scale * values, color=INEXACT, lw=0.5, alpha=0.35)
                iterations, values = iterations[SMOOTHED - 1 :], _smoothed(values)
                label = f"inexact, mean of {SMOOTHED} iterations"
            end = f"{values[-1]:.4f}" if quantity == "loss" else f"{values[-1]:.2%}"
            axes.plot(iterations, scale * values, label=f"{label}: {end}", **style)
        # Above the axes: the texts are wide, and curves may be anywhere.
        axes.legend(frameon=False, title="at the end", alignment="left", loc="lower left", bbox_to_anchor=(0, 1))
        axes.set_xlabel("iteration")
        axes.grid(alpha=0.3)
    left.set_yscale("log")
    left.set_ylabel("loss (mean cross-entropy)")
    right.set_ylabel("accuracy, %")
    _zoom(right, rows)
    return figure


def residuals(rows: Rows) -> Figure:
    """Residual norms of state and adjoint over iterations."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for label, key, colour in (
        ("state", "residual_norm", TRAIN),
        ("adjoint", "adjoint_residual_norm", ADJOINT),
    ):
        iterations, values = _series(rows, key)
        if len(values):  # none are recorded of a single cycle that starts on the coarsest level
            axes.plot(iterations, values, label=label, color=colour, lw=1.2)
    axes.set_yscale("log")
    axes.set_xlabel("iteration")
    axes.set_ylabel("residual norm over all C-points and samples")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _column(rows: Rows, key: str) -> np.ndarray:
    return np.array([row.get(key) for row in rows], dtype=float)


def _series(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and values of the rows that have a finite value."""
    iterations, values = _column(rows, "iteration"), _column(rows, key)
    finite = np.isfinite(values)
    return iterations[finite], values[finite]


def _smoothed(values: np.ndarray) -> np.ndarray:
    """The mean over each `SMOOTHED` values in a row."""
    return np.convolve(values, np.full(SMOOTHED, 1 / SMOOTHED), mode="valid")


def _zoom(axes: Axes, rows: Rows) -> None:
    """Start the accuracy axis where training has left its first moments behind."""
    accuracies = _series(rows, "exact_train_accuracy")[1]
    most = max(_series(rows, key)[1].max() for key in ("exact_train_accuracy", "exact_validation_accuracy"))
    axes.set_ylim(max(0.0, 100 * np.quantile(accuracies, 0.1) - 5), min(101.0, 100 * most + 5))
