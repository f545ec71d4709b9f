"""Pictures of a run: loss and accuracy, residual norms, and what is particular to the problem."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from experiments.problems import level_sets

Rows = Sequence[Mapping[str, Any]]
Predict = Callable[[np.ndarray], np.ndarray]

INEXACT, TRAIN, VALIDATION, ADJOINT = "#9ab8d6", "#1f5a96", "#d1622b", "#d1622b"
CLASS_COLOURS = ListedColormap(["#26456e", "#5b93c5", "#e9e3d3", "#eb9a5c", "#a3341f"])


def draw(folder: Path, rows: Rows, predict: Predict) -> None:
    """Draw all pictures of a level-set run into its folder.

    Args:
        folder: Where `class_map.png`, `training.png` and, for a multigrid run, `residuals.png` go.
        rows: The metrics.
        predict: From points (points, 2) to classes (points,) by the exactly evaluated network.
    """
    class_map(predict).savefig(folder / "class_map.png", dpi=150)
    training(rows).savefig(folder / "training.png", dpi=150)
    if (_column(rows, "residual_norm") > 0).any():  # sequential training has none
        residuals(rows).savefig(folder / "residuals.png", dpi=150)


def class_map(predict: Predict, points_per_side: int = 256) -> Figure:
    """The predicted classes over [-3, 3]^2 beside the true ones, and where they differ."""
    points = level_sets.grid(points_per_side)
    shape = (points_per_side, points_per_side)
    true, predicted = level_sets.label(points).reshape(shape), predict(points).reshape(shape)
    wrong = predicted != true
    figure = Figure(figsize=(11.5, 4.1), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharex=True, sharey=True)
    box = {"origin": "lower", "extent": (-3, 3, -3, 3), "interpolation": "nearest"}
    scale = {"cmap": CLASS_COLOURS, "vmin": -0.5, "vmax": level_sets.CLASSES - 0.5}
    image = left.imshow(true, **box, **scale)
    left.set_title("true classes")
    middle.imshow(predicted, **box, **scale)
    middle.set_title("predicted classes (exact evaluation)")
    right.imshow(wrong, **box, cmap=ListedColormap(["#f4f4f4", "#b3261e"]), vmin=0, vmax=1)
    right.set_title(f"wrong: {wrong.mean():.2%} of the grid points")
    left.set_ylabel("$x_2$")
    for axes in (left, middle, right):
        axes.set_xlabel("$x_1$")
    figure.colorbar(image, ax=left, location="left", ticks=range(level_sets.CLASSES), shrink=0.6, label="class")
    return figure


def training(rows: Rows) -> Figure:
    """Loss and accuracy over iterations: as training sees them, and by exact evaluation."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, quantity, scale in ((left, "loss", 1), (right, "accuracy", 100)):
        for label, key, style in (
            ("inexact, training points", f"inexact_{quantity}", {"color": INEXACT, "lw": 1.5}),
            ("exact, training points", f"exact_train_{quantity}", {"color": TRAIN, "marker": ".", "lw": 1}),
            ("exact, validation points", f"exact_validation_{quantity}", {"color": VALIDATION, "marker": ".", "lw": 1}),
        ):
            iterations, values = _series(rows, key)
            end = f"{values[-1]:.4f}" if quantity == "loss" else f"{values[-1]:.2%}"
            axes.plot(iterations, scale * values, label=f"{label}: {end}", **style)
        axes.legend(frameon=False, title="at the end", alignment="left")
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
    there = np.isfinite(values)
    return iterations[there], values[there]


def _zoom(axes: Axes, rows: Rows) -> None:
    """Start the accuracy axis where training has left its first moments behind."""
    accuracies = _series(rows, "exact_train_accuracy")[1]
    axes.set_ylim(max(0.0, 100 * np.quantile(accuracies, 0.1) - 5), 101)
