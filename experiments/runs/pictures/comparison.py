"""Runs side by side: exact validation loss and accuracy over iterations, and over seconds of training."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.foundation.drawing import Figure
from experiments.foundation.files import write_output

COLOURS = ("#1f5a96", "#d1622b")


def draw(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw two runs into one picture.

    Args:
        runs: Those rows of the metrics that have an exact evaluation, by the runs' names.
        path: Where to.

    Raises:
        OSError: It cannot be written.
    """
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    for (name, rows), colour in zip(runs.items(), COLOURS, strict=True):
        for panel, (key, scale) in enumerate((("loss", 1), ("accuracy", 100))):
            values = scale * np.array([one[f"exact_validation_{key}"] for one in rows], float)
            end = f"{values[-1]:.4g}" if key == "loss" else f"{values[-1]:.2f} %"
            for column, over in enumerate(("iteration", "seconds")):
                x = np.array([one[over] for one in rows], float)
                x = x - x[0] if over == "seconds" else x  # the first iteration compiles, for longer than some train
                label = f"{name}: {end} at the end" if column == 1 else None
                panels[panel, column].plot(x, values, marker=".", lw=1.4, color=colour, label=label)
                panels[panel, column].grid(alpha=0.3)
        panels[1, 1].set_xlabel("seconds of training after the first iteration, which compiles")
    panels[1, 0].set_xlabel("iteration")
    panels[0, 0].set_yscale("log")
    panels[0, 0].set_ylabel("validation loss, exact")
    panels[1, 0].set_ylabel("validation accuracy, exact, %")
    for row in range(2):
        panels[row, 1].legend(frameon=False, fontsize="small")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    write_output(path, file.getvalue())
