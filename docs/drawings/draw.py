"""The drawings of the method: `python docs/drawings/draw.py` writes them beside itself."""

import itertools
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

HERE = Path(__file__).parent
STATE, ADJOINT, COARSE, GRADIENT = "#1f5a94", "#b4451f", "#2a7f62", "#7a4fa3"
GREY, SHADE = "#8a8a8a", "#e8eef5"
DASHED = (0, (3, 2))


def save(figure: Figure, name: str) -> None:
    """Write a drawing as SVG, the same bytes every time."""
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(
            HERE / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.1, facecolor="w"
        )


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Empty axes without a frame."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return figure, axes


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, **style: object) -> None:
    """A straight arrow."""
    options = {"arrowstyle": "-|>", "mutation_scale": 11, "linewidth": 1.3, "shrinkA": 6, "shrinkB": 6} | style
    axes.add_patch(FancyArrowPatch(start, end, color=colour, **options))


def point(axes: Axes, x: float, y: float, colour: str, full: bool) -> None:
    """A C-point (full) or an F-point."""
    face = colour if full else "white"
    axes.plot(x, y, "o", markersize=11 if full else 7, color=face, markeredgecolor=colour, zorder=2)


def grid() -> None:
    """Three levels of 18 layers, m = 4 and then 2: C-points, F-points, intervals, and trailing F-points."""
    figure, axes = canvas(9, 3.8)
    layers, heights, steps = 18, (2.4, 1.2, 0.0), (1, 4, 8)
    labels = (
        "level 0: 18 layers\nstep $h$, $m_0 = 4$",
        "level 1: 4 steps\nstep $4h$, $m_1 = 2$",
        "level 2: 2 steps\nstep $8h$",
    )
    for j in range(4):
        axes.add_patch(Rectangle((4 * j - 0.4, 2.14), 3.8, 0.52, color=SHADE, zorder=0))
    for level, (height, step) in enumerate(zip(heights, steps, strict=True)):
        points = range(0, layers + 1, step)
        axes.plot([0, points[-1]], [height, height], color=GREY, linewidth=1, zorder=1)
        axes.text(-1.2, height, labels[level], ha="right", va="center", fontsize=11)
        for n in points:
            full = level == 2 or n % steps[level + 1] == 0
            point(axes, n, height, STATE, full)
            if full and level < 2:
                arrow(axes, (n, height), (n, heights[level + 1]), COARSE, linestyle=DASHED, linewidth=1)
    for n in range(0, layers + 1, 2):
        axes.text(n, 2.78, f"$u^{{{n}}}$", ha="center", va="bottom", fontsize=11)
    axes.text(6, 1.93, "interval", ha="center", va="center", fontsize=10)
    axes.text(18.15, 1.84, "trailing F-points:\non level 0 only", ha="center", va="center", fontsize=10)
    point(axes, 1.0, -0.7, STATE, True)
    axes.text(1.4, -0.7, "C-point", va="center", fontsize=10)
    point(axes, 4.6, -0.7, STATE, False)
    axes.text(5.0, -0.7, "F-point", va="center", fontsize=10)
    arrow(axes, (8.2, -0.5), (8.2, -0.9), COARSE, linestyle=DASHED, linewidth=1, shrinkA=0, shrinkB=0)
    axes.text(8.6, -0.7, "injection of C-points, $v^j = u^{jm}$", va="center", fontsize=10)
    axes.set(xlim=(-5.4, 19.8), ylim=(-1.0, 3.2))
    save(figure, "grid")


def cycles() -> None:
    """A V-cycle and an F-cycle on four levels."""
    figure, axes = canvas(9, 3.0)
    bottom = 3
    looks = {"relax": ("o", STATE, STATE), "correct": ("o", "white", COARSE), "solve": ("s", ADJOINT, ADJOINT)}

    def mark(x: float, y: float, kind: str, size: int) -> None:
        shape, face, edge = looks[kind]
        axes.plot(x, y, shape, markersize=size, color=face, markeredgecolor=edge, markeredgewidth=1.6)

    v, f = (0, 1, 2, 3, 2, 1, 0), (0, 1, 2, 3, 2, 3, 2, 1, 2, 3, 2, 1, 0)
    for levels, first, title in ((v, 0, "V-cycle"), (f, 8, "F-cycle")):
        for i, (above, below) in enumerate(itertools.pairwise(levels)):
            colour = STATE if below > above else COARSE
            arrow(axes, (first + i, -above), (first + i + 1, -below), colour, shrinkA=8, shrinkB=8)
        for i, level in enumerate(levels):
            down = i + 1 < len(levels) and levels[i + 1] > level
            mark(first + i, -level, "solve" if level == bottom else "relax" if down else "correct", 12)
        axes.text(first + (len(levels) - 1) / 2, 0.75, title, ha="center", fontsize=13)
    for level in range(bottom + 1):
        axes.text(-0.8, -level, f"level {level}", ha="right", va="center", fontsize=11)
    legend = (
        (0.0, "relax, FAS right-hand side", "relax"),
        (8.3, "F-relax, then correct the level above", "correct"),
        (18.0, "solve", "solve"),
    )
    for x, text, kind in legend:
        mark(x, -4.0, kind, 10)
        axes.text(x + 0.45, -4.0, text, va="center", fontsize=10.5)
    axes.set(xlim=(-2.8, 20.6), ylim=(-4.4, 1.2))
    save(figure, "cycles")


def intervals() -> None:
    """What runs when: a sequential gradient, and one iteration of predict-then-sweep on four devices."""
    figure, axes = canvas(9, 4.0)
    devices, forward = 4, 8.0
    sweep, coarse = 4 * forward / devices, 1.4

    def bar(row: float, start: float, length: float, colour: str, text: str = "") -> None:
        axes.add_patch(Rectangle((start, row - 0.36), length, 0.72, facecolor=colour, edgecolor="white", linewidth=1.2))
        axes.text(start + length / 2, row, text, ha="center", va="center", color="white", fontsize=10)

    def note(text: str, at: float, place: float) -> None:
        line = {"arrowstyle": "-", "color": GREY}
        axes.annotate(text, (at, 3.36), (place, 4.3), ha="center", va="center", fontsize=10, arrowprops=line)

    axes.text(-0.6, 5.4, "sequential", ha="right", va="center", fontsize=11)
    bar(5.4, 0, forward, STATE, "state, layer after layer")
    bar(5.4, forward, 3 * forward, ADJOINT, "recompute, adjoint and gradient, layer after layer")
    for device in range(devices):
        row = 3.0 - device
        axes.text(-0.6, row, f"device {device}", ha="right", va="center", fontsize=11)
        bar(row, 0, coarse, COARSE)
        bar(row, coarse, coarse, COARSE)
        bar(row, 2 * coarse, sweep, GRADIENT, "its intervals, at once")
    note("coarse recurrences:\nstate, adjoint", coarse, 1.4)
    note("one fused sweep: layers, transposes, parameter gradients,\nnew right-hand sides", 2 * coarse + 4, 16.5)
    arrow(axes, (0, -0.85), (34, -0.85), GREY, shrinkA=0, shrinkB=0)
    axes.text(34, -1.25, "time (a sketch, not a measurement)", ha="right", va="center", fontsize=10, color=GREY)
    axes.set(xlim=(-5, 34.5), ylim=(-1.6, 6.0))
    save(figure, "intervals")


def adjoint() -> None:
    """C-points of state and adjoint, N = 10 and m = 4: those of the adjoint are counted from the end."""
    figure, axes = canvas(9, 2.5)
    layers, m = 10, 4
    axes.plot([0, layers], [1, 1], color=GREY, linewidth=1, zorder=1)
    axes.plot([0, layers], [0, 0], color=GREY, linewidth=1, zorder=1)
    for n in range(layers + 1):
        point(axes, n, 1, STATE, n % m == 0)
        point(axes, n, 0, ADJOINT, (layers - n) % m == 0)
        axes.text(n, 1.22, f"$u^{{{n}}}$", ha="center", fontsize=11)
        axes.text(n, -0.42, f"$\\lambda^{{{n}}}$", ha="center", fontsize=11)
        if n < layers and (layers - n) % m == 0:
            arrow(axes, (n, 1), (n, 0), GREY, linestyle=DASHED, linewidth=1)
    arrow(axes, (0.2, 1.62), (2.6, 1.62), STATE, shrinkA=0, shrinkB=0)
    axes.text(2.8, 1.62, "state, intervals from the first layer on", va="center", fontsize=10.5)
    arrow(axes, (9.8, -0.78), (7.4, -0.78), ADJOINT, shrinkA=0, shrinkB=0)
    axes.text(7.2, -0.78, "adjoint, intervals from the last layer on", va="center", ha="right", fontsize=10.5)
    axes.text(6.15, 0.5, "linearised at fine states,\nhere F-points of the state", va="center", fontsize=10)
    axes.set(xlim=(-0.5, 10.5), ylim=(-1.0, 1.85))
    save(figure, "adjoint")


if __name__ == "__main__":
    for draw in (grid, cycles, intervals, adjoint):
        draw()
