"""Scaling as published: weak, and strong for every case, the part where nothing is measured shaded."""

from pathlib import Path
from typing import Any

from experiments.foundation.drawing import Axes, Figure

SHADE = "#f1f1f1"
COLOURS = {
    "2 + 2 V-cycles": "#7a4fa3",
    "2 + 2 F-cycles": "#b58fd6",
    "one-shot, average": "#1f5a96",
    "one-shot, picard(2)": "#2f8f83",
    "batch split": "#d1622b",
    "pipeline": "#a08a2c",
}


def draw(result: dict[str, Any], file: Path) -> None:
    """Draw what `experiments.published` writes to published.json into a PNG file.

    Args:
        result: The figures.
        file: To be written.
    """
    strong = result["published_strong"]
    figure = Figure(figsize=(5.0 * (1 + len(strong)), 4.6), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(strong), squeeze=False)[0]
    _weak(first, result["published_weak"])
    for axes, (name, case) in zip(others, strong.items(), strict=True):
        _strong(axes, name, case, result["micro_batches"])
    figure.savefig(file, dpi=150)


def _weak(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for name in rows[-1]["modelled"]:
        _line(axes, rows, name, lambda row, ms: ms)
    _finish(axes, rows)
    axes.set(title=f"weak: {rows[0]['layers'] // rows[0]['devices']} layers a device", ylabel="ms of one iteration")
    axes.set_ylim(0, None)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _strong(axes: Axes, title: str, case: dict[str, Any], micro_batches: int) -> None:
    rows, sequential = case["rows"], case["sequential"]
    devices = [row["devices"] for row in rows]
    axes.plot(devices, devices, color="0.5", lw=1, ls=":", label="ideal")
    for name in case["crossing"]:
        _line(axes, rows, name, lambda row, ms: sequential / ms)
        at = case["crossing"][name]
        if at is not None:
            axes.axvline(at, color=COLOURS[name], lw=0.8, ls=":", ymax=0.12)
            axes.plot([at], [1], "v", color=COLOURS[name], ms=7, mec="white", zorder=4)
    for key, label in (
        ("batch split", "batch split, its all-reduce modelled"),
        ("pipeline", f"pipeline of {micro_batches} micro-batches, formula"),
    ):
        pairs = [(row["devices"], sequential / row[key]) for row in rows if key in row]
        axes.plot(*zip(*pairs, strict=True), color=COLOURS[key], lw=1.2, ls="-.", label=label)
    axes.axhline(1, color="0.4", lw=0.8)
    _finish(axes, rows)
    axes.set_yscale("log", base=2)
    ticks = [2**k for k in range(-3, 9, 1)]
    axes.set_yticks(ticks, [f"{n:g} x" for n in ticks])
    axes.set_ylim(2**-3.5, 2**8)
    what = f"{case['case']['layers']} layers of {case['case']['width']}, {case['case']['batch']} points"
    axes.set(title=f"strong, {title} (triangles: cross-over)\n{what}", ylabel="speed-up over the sequential gradient")
    axes.legend(frameon=False, fontsize=7.5, loc="upper left")


def _line(axes: Axes, rows: list[dict[str, Any]], name: str, value: Any) -> None:
    """Modelled as a dashed line, measured as points."""
    for kind, style in (("modelled", {"ls": "--", "lw": 1.5, "label": name}), ("measured", {"ls": "", "marker": "o"})):
        pairs = [(row["devices"], value(row, row[kind][name])) for row in rows if name in row[kind]]
        if pairs:
            axes.plot(*zip(*pairs, strict=True), color=COLOURS[name], **style)


def _finish(axes: Axes, rows: list[dict[str, Any]]) -> None:
    devices = [row["devices"] for row in rows]
    axes.set_xscale("log", base=2)
    axes.set_xticks(devices, [str(n) for n in devices])
    axes.set_xlabel("devices (points: measured; dashed: modelled)")
    axes.grid(alpha=0.3)
    axes.set_xlim(0.85 * devices[0], 1.2 * devices[-1])
    measured = [row["devices"] for row in rows if row["measured"]]
    if measured and measured[-1] < devices[-1]:
        axes.axvspan(2**0.5 * measured[-1], 1.2 * devices[-1], color=SHADE, zorder=0)
        axes.text(0.98, 0.04, "modelled", ha="right", fontsize=9, color="0.4", transform=axes.transAxes)
