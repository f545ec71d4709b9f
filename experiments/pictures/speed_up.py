"""Speed-ups of an iteration as bars: one-shot training and splitting the batch, over the best sequential program."""

from pathlib import Path
from typing import Any

from experiments.foundation.drawing import Figure

COLOURS = {"one-shot": ("#9ab8d6", "#1f5a96"), "data parallel": ("#f0c3a6", "#d1622b")}  # of one core, of more
NAMES = {"one-shot": "one-shot", "data parallel": "batch split"}


def draw(result: dict[str, Any], file: Path) -> None:
    """Draw a group of bars for every case into a PNG file.

    Args:
        result: What `experiments.benchmark --json` writes, or several of them, their cases one after another.
        file: To be written.
    """
    cases = result["cases"]
    ways = list(dict.fromkeys(way for case in cases for way in speed_ups(case)))
    ways.sort(key=lambda way: (way[1], way[0] != "data parallel", way[2]))
    figure = Figure(figsize=(1.8 + 1.5 * len(cases), 4.4), layout="constrained")
    axes = figure.subplots()
    width = 0.84 / len(ways)
    for number, way in enumerate(ways):
        kind, devices, mpi = way
        places = f"{devices} MPI ranks" if mpi else f"{devices} devices" if devices > 1 else "1 core"
        style: dict[str, Any] = {"color": COLOURS[kind][devices > 1], "edgecolor": "white"}
        style |= {"hatch": "//"} if mpi else {}
        known = [(i, speed_ups(case)[way]) for i, case in enumerate(cases) if way in speed_ups(case)]
        at = [i + (number - (len(ways) - 1) / 2) * width for i, _ in known]
        bars = axes.bar(at, [value for _, value in known], 0.94 * width, label=f"{NAMES[kind]}, {places}", **style)
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    axes.axhline(1, color="0.3", lw=1)
    axes.set_xticks(range(len(cases)), [_name(case["case"]) for case in cases])
    layers = ", ".join(str(n) for n in dict.fromkeys(case["case"]["layers"] for case in cases))
    axes.set(title=f"A training step of {layers} layers", ylabel="speed-up over the best sequential\nprogram on 1 core")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


def speed_ups(case: dict[str, Any]) -> dict[tuple[str, int, bool], float]:
    """The best program's speed-up of every kind by (kind, devices, whether they are MPI ranks).

    Args:
        case: One of the benchmark's.
    """
    best: dict[tuple[str, int, bool], float] = {}
    for row in case["programs"]:
        if row["kind"] in NAMES and row["milliseconds"]:
            way = row["kind"], row["devices"], row["mpi"]
            best[way] = max(best.get(way, 0.0), case["tuned"]["milliseconds"] / row["milliseconds"])
    return best


def _name(case: dict[str, Any]) -> str:
    return f"{case['batch']} points\nwidth {case['width']}, m = {case['factor']}"
