"""The demo's one picture: time per step, the race, cycles and more devices."""

import math
from pathlib import Path
from typing import Any

COLOURS = {"sequential": "0.45", "one-shot": "C0", "batch": "C1"}


def draw(path: Path, result: dict[str, Any]) -> None:
    """Four panels; `result` as `experiments.demo.run` returns it."""
    from experiments.foundation.drawing import Figure

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    (bars, race), (cycles, devices) = figure.subplots(2, 2)

    names, values = list(result["steps"]), list(result["steps"].values())
    bars.barh(names[::-1], values[::-1], color=[_colour(name) for name in names[::-1]])
    for row, (name, value) in enumerate(zip(names[::-1], values[::-1], strict=True)):
        faster = f"  {values[0] / value:.2f} x" if name != names[0] else ""
        bars.text(value, row, f" {value:.1f} ms{faster}", va="center", fontsize=9)
    bars.set(title=f"One training step, {result['layers']} layers", xlabel="milliseconds", xlim=(0, 1.35 * max(values)))

    for name, curve in result["race"].items():
        seconds, accuracy = zip(*curve, strict=True)
        race.plot(seconds, [100 * a for a in accuracy], "o-", ms=3, label=name, color=_colour(name))
    race.set(title="The race", xlabel="own seconds of training", ylabel="exact validation accuracy, %")
    race.legend(frameon=False, loc="lower right")

    layers, counts = list(result["cycles"]), list(result["cycles"].values())
    cycles.semilogx(layers, counts, "o-", color="C0", base=2)
    cycles.set_xticks(layers, [str(n) for n in layers])
    cycles.set(title="Cycles to 1e-8: the same for every depth", xlabel="layers", ylim=(0, 1.6 * max(counts)))

    count, speed = list(result["devices"]), list(result["devices"].values())
    devices.loglog(count, speed, "o--", color="C0", base=2, label="one-shot, modelled")
    measured = [(result["cores"], result["steps"]["best sequential"] / value)
            for name, value in result["steps"].items() if name == f"one-shot, {result['cores']} cores"]  # fmt: skip
    if measured:
        devices.plot(*zip(*measured, strict=True), "s", color="C0", label="measured here")
    devices.axhline(1, color="0.45", lw=1)
    shown = sorted({result["cores"], *count})
    devices.plot(shown, shown, ":", color="0.45", lw=1, label="ideal")
    devices.set_xticks(shown, [str(n) for n in shown])
    ticks = [2**k for k in range(math.ceil(math.log2(max([*shown, *speed]))) + 1)]
    devices.set_yticks(ticks, [f"{n} x" for n in ticks])
    devices.minorticks_off()
    devices.set(title="More devices", xlabel="devices", ylabel="speed-up over best sequential")
    devices.legend(frameon=False)
    for axis in (bars, race, cycles, devices):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def _colour(name: str) -> str:
    return next((colour for word, colour in COLOURS.items() if word in name), "C2")
