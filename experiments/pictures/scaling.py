"""Scaling over devices: speed-ups beside the ideal and beside splitting the batch, the modelled part shaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.foundation.drawing import Axes, Figure


ONE_SHOT, SPLIT, SHADE = "#1f5a96", "#d1622b", "#f1f1f1"


def draw(result: dict[str, Any], file: Path) -> None:
    """Draw strong scaling beside weak scaling into a PNG file.

    Args:
        result: As for `figure`.
        file: To be written.
    """
    figure(result).savefig(file, dpi=150)


def figure(result: dict[str, Any]) -> Figure:
    """Strong scaling beside weak scaling.

    Args:
        result: What `experiments.scaling` writes to scaling.json.
    """
    from experiments.foundation.drawing import Figure  # Matplotlib is slow to import

    drawn = Figure(figsize=(10.0, 4.4), layout="constrained")
    strong, weak = drawn.subplots(1, 2)
    _strong(strong, result)
    _weak(weak, result)
    for axes, kind in ((strong, "strong"), (weak, "weak")):
        devices = [row["devices"] for row in result[kind]]
        axes.set_xscale("log", base=2)
        axes.set_xticks(devices, [str(n) for n in devices])
        axes.set_xlabel("devices")
        axes.grid(alpha=0.3)
        _shade(axes, result[kind])
    return drawn


def _strong(axes: Axes, result: dict[str, Any]) -> None:
    rows = result["strong"]
    devices = [row["devices"] for row in rows]
    axes.plot(devices, devices, color="0.5", lw=1, ls=":", label="ideal")
    for key, colour, style, label in (
        ("data_parallel", SPLIT, "--", "batch split: a share's time measured, all-reduce modelled"),
        ("modelled", ONE_SHOT, "--", "one-shot, modelled"),
        ("measured", ONE_SHOT, "", "one-shot, measured"),
    ):
        pairs = [(row["devices"], result["sequential"] / row[key]) for row in rows if row.get(key)]
        if pairs:
            marker = "o" if key == "measured" else ""
            axes.plot(*zip(*pairs, strict=True), color=colour, ls=style, marker=marker, lw=1.5, label=label)
    axes.axhline(1, color="0.5", lw=0.8)
    axes.set_yscale("log", base=2)
    ticks = [2**k for k in range(len(devices))]
    axes.set_yticks(ticks, [f"{n} x" for n in ticks])
    axes.set(title=f"strong scaling: {result['layers']} layers", ylabel="speed-up over sequential training on 1 core")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _weak(axes: Axes, result: dict[str, Any]) -> None:
    rows = result["weak"]
    first = next(row[key] for row in rows for key in ("measured", "modelled") if row[key])
    axes.axhline(1, color="0.5", lw=1, ls=":", label="ideal")
    for key, style, marker in (("modelled", "--", ""), ("measured", "", "o")):
        pairs = [(row["devices"], row[key] / first) for row in rows if row[key]]
        if pairs:
            label = f"one-shot, {key}"
            axes.plot(*zip(*pairs, strict=True), color=ONE_SHOT, ls=style, marker=marker, lw=1.5, label=label)
    axes.set(title=f"weak scaling: {rows[0]['layers']} layers per device", ylabel="time over that on 1 device")
    axes.set_ylim(0, None)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _shade(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Say where nothing has been measured."""
    measured = [row["devices"] for row in rows if row["measured"]]
    last = rows[-1]["devices"]
    if measured and measured[-1] < last:
        axes.axvspan(2**0.5 * measured[-1], 1.2 * last, color=SHADE, zorder=0)
        axes.set_xlim(0.85, 1.2 * last)
        axes.text(0.98, 0.07, "modelled", ha="right", va="bottom", fontsize=9, color="0.4", transform=axes.transAxes)
