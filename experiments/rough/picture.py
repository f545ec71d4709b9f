"""The picture of trainings on rough layers: exact validation losses and gradient errors over the iterations."""

from pathlib import Path
from typing import Any

from experiments.config.schema import Config

LABELS = {
    "sequential": "sequential",
    "picard": "one-shot, Picard sweeps",
    "average": "one-shot, averaged layers",
    "injection": "one-shot, injection",
    "control": "one-shot, Picard sweeps under control",
}


def draw(runs: list[dict[str, Any]], config: Config, file: Path) -> None:
    """Draw runs into a PNG file, one line per method and seed.

    Args:
        runs: Of `experiments.rough`: method, seed and points of each.
        config: As written.
        file: To be written.
    """
    from experiments.foundation.drawing import Figure

    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    losses, errors = figure.subplots(1, 2)
    labelled = set()
    for run in runs:
        method, points = run["method"], run["points"]
        # By the method, not the order of runs: its colour is the same in every picture.
        number = list(LABELS).index(method)
        label = None if method in labelled else LABELS[method]
        labelled.add(method)
        line = "--" if method in ("picard", "control") else "-"
        style: dict[str, Any] = {"color": f"C{number}", "lw": 1.4, "alpha": 0.8, "ls": line}
        # Sequential training, wide and beneath: what agrees with it would hide it, or be hidden.
        style |= {"label": label} | ({"lw": 3, "alpha": 0.4, "zorder": 1.5} if method == "sequential" else {})
        losses.plot([p["iteration"] for p in points], [p["exact_validation_loss"] for p in points], **style)
        compared = [p for p in points if p.get("distance") is not None]
        errors.plot([p["iteration"] for p in compared], [p["distance"] for p in compared], **style)
    losses.set(xlabel="iteration", ylabel="exact validation loss")
    losses.legend(frameon=False, fontsize=9)
    errors.set(xlabel="iteration", ylabel="relative error of the gradient", yscale="log")
    network, solver = config.network, config.solver
    title = f"{config.problem.name}: N = {network.layers}, T = {network.final_time:.3g}, "
    figure.suptitle(title + f"m = {solver.coarsening_factor}, p = {solver.sweeps}", fontsize=10)
    figure.savefig(file, dpi=150)
