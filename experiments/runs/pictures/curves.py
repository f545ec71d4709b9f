"""Curves of a run: loss and accuracy over iterations and seconds; how inexact its states and gradients were."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.foundation.drawing import Axes, Figure
from experiments.foundation.numbers import is_number

Rows = Sequence[Mapping[str, Any]]

SMOOTHED = 10  # iterations, at least
MEANS = 100  # so many stretches of a long training are smoothed
INEXACT, TRAIN, VALIDATION, ADJOINT = "#9ab8d6", "#1f5a96", "#d1622b", "#d1622b"
FINE, SWITCH = "#e3f0e3", "0.35"


OF_CLASSES = "loss", "accuracy, %"
OF_NUMBERS = "loss (of scaled targets)", "accuracy: explained variance, %"


class Judged(NamedTuple):
    """How the gradients of a run were judged.

    Attributes:
        events: The run's decisions; those of `control` hold the gradient's relative error as `distance`.
        tolerance: Relative error of the gradient that is borne, > 0.
    """

    events: Rows
    tolerance: float


def training(rows: Rows, titles: tuple[str, str] = OF_CLASSES) -> Figure:
    """Loss and accuracy over iterations, and over seconds: as training sees them, and by exact evaluation.

    The iterations' axis is logarithmic where exact evaluations crowd at the beginning (`evaluation.early`). Where the
    network changes, in nested iteration, a line says to how many layers.

    Args:
        rows: The metrics.
        titles: Of loss and accuracy.
    """
    figure = Figure(figsize=(11.5, 6.6), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    times = {"iteration": column(rows, "iteration"), "seconds": _clock(rows)}
    for line, (quantity, scale) in zip(panels, (("loss", 1), ("accuracy", 100)), strict=True):
        for axes, time in zip(line, times.values(), strict=True):
            _curves(axes, rows, quantity, scale, time)
            _switches(axes, rows, time, named=quantity == "loss")
            axes.grid(alpha=0.3)
        # Above both panels, where no curve is: in the room of a title, as the layout knows no legend so wide.
        line[0].set_title(" ")
        legend = line[0].legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 1), fontsize=9)
        legend.set_in_layout(False)
    panels[0, 0].set_yscale("log")
    panels[0, 0].set_ylabel(titles[0])
    panels[1, 0].set_ylabel(titles[1])
    panels[1, 0].set_xlabel("iteration")
    panels[1, 1].set_xlabel("seconds of training, without first iterations, which compile")
    exact = times["iteration"][np.isfinite(column(rows, "exact_train_loss"))]
    if len(exact) > 4 and np.ptp(np.diff(exact[:-1])) > 0:
        panels[1, 0].set_xscale("symlog", linthresh=1, linscale=0.3)
        panels[1, 0].set_xlim(0, None)
    else:
        # Of evenly spaced evaluations the first is of no training, and would hide the others.
        _zoom(panels[1, 0], rows)
    return figure


def residuals(rows: Rows, judged: Judged | None = None) -> Figure:
    """How inexact a run was: what coarse solves miss, relative to the state, and how far gradients were off.

    Args:
        rows: The metrics; where they do not hold relative residuals (those of the published loop, and of earlier
            versions, do not), the recorded norms are drawn.
        judged: How gradients were judged; None: no band says what is fine.
    """
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.subplots()
    iterations, relative = _series(rows, "mismatch")
    if len(relative):
        _noisy(axes, iterations, relative, VALIDATION, "residual over the norm of the C-points, state or adjoint")
        _gradient_errors(axes, rows, judged)
        axes.set_ylabel("relative residual, relative error")
    else:
        for label, key, colour in (("state", "residual_norm", TRAIN), ("adjoint", "adjoint_residual_norm", ADJOINT)):
            iterations, values = _series(rows, key)
            if len(values):  # none are recorded of a single cycle that starts on the coarsest level
                axes.plot(iterations, values, label=label, color=colour, lw=1.2)
        axes.set_ylabel("residual norm over all C-points and samples")
    axes.set_yscale("log")
    axes.set_xlabel("iteration")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)
    return figure


def predictions(true: np.ndarray, predicted: np.ndarray, names: tuple[str, ...]) -> Figure:
    """The predicted numbers of validation points over the true ones, a panel for each of at most six targets.

    Args:
        true: (points, targets), in their own units.
        predicted: Likewise.
        names: The targets'.
    """
    shown = min(6, len(names))
    columns = min(3, shown)
    lines = -(-shown // columns)
    figure = Figure(figsize=(4.2 * columns + 0.4, 4.0 * lines), layout="constrained")
    for i, axes in enumerate(figure.subplots(lines, columns, squeeze=False).flat[:shown]):
        rest = np.mean((predicted[:, i] - true[:, i]) ** 2)
        explained = 1 - rest / np.var(true[:, i])
        ends = [true[:, i].min(), true[:, i].max()]
        axes.plot(ends, ends, color="0.5", lw=1)
        axes.plot(true[:, i], predicted[:, i], ".", ms=3, color=TRAIN, alpha=0.5)
        axes.set(xlabel=f"true {names[i]}", ylabel="predicted")
        axes.set_title(f"{names[i]}: off by {np.sqrt(rest):.3g} (RMS), {explained:.1%} of the variance", fontsize=10)
        axes.grid(alpha=0.3)
    return figure


def column(rows: Rows, key: str) -> np.ndarray:
    """The values of all rows, nan where there is none: (rows,)."""
    return np.array([row.get(key) for row in rows], dtype=float)


def _gradient_errors(axes: Axes, rows: Rows, judged: Judged | None) -> None:
    pairs = [(row["iteration"], row["gradient_error"]) for row in rows if row.get("gradient_error")]
    if judged:
        pairs += [
            (event["iteration"], event["distance"]) for event in judged.events if is_number(event.get("distance"))
        ]
    if pairs:
        axes.plot(*zip(*sorted(pairs), strict=True), "o-", ms=4, lw=1, color=TRAIN, label="error of the gradient")
    if judged:
        shown = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
        bottom = min(0.5 * shown[shown > 0].min(), 0.1 * judged.tolerance)
        axes.axhspan(bottom, judged.tolerance, color=FINE, zorder=0)
        axes.set_ylim(bottom, 1.5 * max(shown.max(), judged.tolerance))
        text = f"fine: a gradient that is off by {judged.tolerance:.0%} at most"
        axes.text(0.01, 0.02, text, fontsize=9, color="#3a6b3a", transform=axes.transAxes)


def _curves(axes: Axes, rows: Rows, quantity: str, scale: float, time: np.ndarray) -> None:
    """What training sees and the exact figures, of one quantity over one time."""
    for label, key, colour in (
        ("inexact, as training sees it", f"inexact_{quantity}", INEXACT),
        ("exact, training points", f"exact_train_{quantity}", TRAIN),
        ("exact, validation points", f"exact_validation_{quantity}", VALIDATION),
    ):
        values = scale * column(rows, key)
        known = np.isfinite(values) & np.isfinite(time)
        end = values[np.isfinite(values)][-1:]
        name = "".join(f"{label}: {v:.4f}" if quantity == "loss" else f"{label}: {v / 100:.2%}" for v in end)
        if key.startswith("inexact"):
            _noisy(axes, time[known], values[known], colour, name)
        else:
            axes.plot(time[known], values[known], marker=".", lw=1, color=colour, label=name)


def _noisy(axes: Axes, time: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    """A curve; the noise of a long one stays in sight, behind its mean over some iterations."""
    window = max(SMOOTHED, len(values) // MEANS)
    if len(values) > 10 * window:
        axes.plot(time, values, color=colour, lw=0.5, alpha=0.35)
        values = _smoothed(values, window)
        label = f"{label} (mean of {window} iterations)"
    axes.plot(time, values, color=colour, lw=1.5, label=label)


def _smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Means over about `window` values around each; over fewer at the ends, which would move otherwise."""
    at, sums = np.arange(len(values)), np.concatenate([[0.0], np.cumsum(values)])
    reach = np.minimum(np.minimum(at // 2, at[::-1]), window // 2)
    return (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)


def _switches(axes: Axes, rows: Rows, time: np.ndarray, named: bool) -> None:
    """Mark where nested iteration goes on to a deeper network."""
    layers = column(rows, "layers")
    for at in np.flatnonzero(np.diff(layers) > 0) + 1:
        axes.axvline(time[at], color=SWITCH, lw=0.8, ls="--")
        if named:
            place: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "top"}
            text = f"{layers[at]:.0f} layers"
            axes.text(time[at], 0.98, text, fontsize=8, color=SWITCH, transform=axes.get_xaxis_transform(), **place)


def _clock(rows: Rows) -> np.ndarray:
    """Seconds of training without the first iteration of each network: compiling takes longer than some trainings."""
    spent = np.diff(column(rows, "seconds"), prepend=0.0)
    spent[np.diff(column(rows, "layers"), prepend=0.0) > 0] = 0.0
    spent[0] = 0.0
    return np.cumsum(spent)


def _series(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and values of the rows that have a finite value other than zero, which no logarithm can show."""
    iterations, values = column(rows, "iteration"), column(rows, key)
    known = np.isfinite(values) & (values > 0)
    return iterations[known], values[known]


def _zoom(axes: Axes, rows: Rows) -> None:
    """Start the accuracy axis where training has left its first moments behind."""
    train, validation = (column(rows, f"exact_{part}_accuracy") for part in ("train", "validation"))
    train = train[np.isfinite(train)]
    if len(train):  # not lost, and not all of it beyond what is finite
        most = np.nanmax([*train, *validation])
        axes.set_ylim(max(0.0, 100 * np.quantile(train, 0.1) - 5), min(101.0, 100 * most + 5))
