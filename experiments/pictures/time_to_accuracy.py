"""Accuracy over seconds of training: of every method the median of its seeds, their band, and when the target held."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from experiments.foundation.drawing import Figure


POINTS = 400  # of a median's curve


def draw(result: dict[str, Any], file: Path) -> None:
    """Draw into a PNG file.

    Args:
        result: As for `figure`.
        file: To be written.
    """
    figure(result).savefig(file, dpi=150)


def figure(result: dict[str, Any]) -> Figure:
    """The medians, their bands, and when the target held.

    Args:
        result: What `experiments.time_to_accuracy` writes to times.json.
    """
    from experiments.foundation.drawing import Figure  # Matplotlib is slow to import

    target, drawn = 100 * result["target"], Figure(figsize=(8.0, 4.8), layout="constrained")
    axes = drawn.subplots()
    best = best_rates(result)
    for number, (name, (rate, runs)) in enumerate(best.items()):
        seconds, accuracy = _together(runs)
        low, middle, high = np.quantile(accuracy, (0.0, 0.5, 1.0), axis=0)
        reached = _median_seconds(runs)
        when = f"{reached:.1f} s" if np.isfinite(reached) else "not reached"
        label = f"{name}, rate {rate:g}: {when}"
        axes.plot(seconds, middle, color=f"C{number}", lw=1.6, label=label)
        axes.fill_between(seconds, low, high, color=f"C{number}", alpha=0.15, lw=0)
        if np.isfinite(reached):
            axes.plot([reached], [target], "o", color=f"C{number}", ms=7, mec="white", zorder=3)
            axes.axvline(reached, color=f"C{number}", lw=0.8, ls=":", ymax=(target - 50) / 50)
    axes.axhline(target, color="0.5", lw=0.8, ls="--")
    axes.set(xlabel="seconds of training", ylabel="exact validation accuracy, %", ylim=(50, 100))
    seeds = sorted({run["seed"] for run in result["runs"]})
    layers = result["config"]["network"]["layers"]
    # Opaque, as the lines at the times would run through it.
    look: dict[str, Any] = {"framealpha": 1.0, "edgecolor": "white", "alignment": "left"}
    axes.legend(loc="lower right", title=f"median time to {target:g} %", **look)
    what = (
        f"medians of seeds {', '.join(map(str, seeds))}; bands: all of them" if len(seeds) > 1 else f"seed {seeds[0]}"
    )
    axes.set_title(f"{layers} layers: {what}", fontsize=10)
    return drawn


def best_rates(result: dict[str, Any]) -> dict[str, tuple[float, list[dict[str, Any]]]]:
    """For every method the learning rate with the smallest median time to the target, and its runs.

    Args:
        result: As for `draw`.
    """
    best = {}
    for name in dict.fromkeys(run["method"] for run in result["runs"]):
        own = [run for run in result["runs"] if run["method"] == name]
        by_rate = {rate: [run for run in own if run["rate"] == rate] for rate in sorted({run["rate"] for run in own})}
        rate = min(by_rate, key=lambda r: _median_seconds(by_rate[r]))
        best[name] = rate, by_rate[rate]
    return best


def _median_seconds(runs: list[dict[str, Any]]) -> float:
    """Until the target was reached; infinite for a run in which it never was."""
    return statistics.median(np.inf if run["reached"] is None else run["points"][run["reached"]][1] for run in runs)


def _together(runs: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Seconds, (points,), and the accuracies in % of all runs at them, (runs, points), until half the runs have ended.

    A run that has ended keeps its last accuracy: the target has held.
    """
    seconds = np.linspace(0, statistics.median_high(run["points"][-1][1] for run in runs), POINTS)
    curves = [list(zip(*run["points"], strict=True)) for run in runs]
    return seconds, 100 * np.array([np.interp(seconds, curve[1], curve[2]) for curve in curves])
