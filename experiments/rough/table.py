"""The tables of trainings on rough layers."""

import statistics
from typing import Any

COLUMNS = {
    "gradient error": "distance",
    "contraction: state": "state_factor",
    "adjoint": "adjoint_factor",
    "law: independent": "law",
    "coherent": "coherent_law",
}


def outcome(runs: list[dict[str, Any]]) -> str:
    """Medians over the seeds of a method: losses, accuracy and gradient error at the end, and the work.

    Args:
        runs: Of `experiments.rough`, of one method.
    """
    last = [run["points"][-1] for run in runs]
    losses = f"loss {_median(last, 'exact_train_loss'):.4f} training {_median(last, 'exact_validation_loss'):.4f}"
    accuracy, distance = _median(last, "exact_validation_accuracy"), _median(last, "distance")
    sweeps = statistics.median(run["sweeps"] for run in runs)
    serial = statistics.median(run["serial"] for run in runs)
    return (
        f"{losses} validation, accuracy {accuracy:.2%} validation, gradient error {distance:.2g}, "
        f"{sweeps:.2f} fused sweeps an iteration, {serial:g} sequential gradients"
    )


def along(runs: list[dict[str, Any]]) -> list[str]:
    """Medians over the seeds of a method, one line per exact evaluation: gradient error, contraction and its law.

    Args:
        runs: Of `experiments.rough`, of one method.
    """
    keys = [key for key in COLUMNS if any(COLUMNS[key] in point for run in runs for point in run["points"])]
    if not keys:
        return []
    lines = ["iteration" + "".join(f"{key:>20}" for key in keys)]
    for points in zip(*(run["points"] for run in runs), strict=True):
        cells = [_median(points, COLUMNS[key], None) for key in keys]
        row = "".join(f"{'-' if cell is None else f'{cell:.2g}':>20}" for cell in cells)
        lines.append(f"{points[0]['iteration']:9}{row}")
    return lines


def _median(points: Any, key: str, default: Any = 0.0) -> Any:
    values = [value for point in points if (value := point.get(key, default)) is not None]
    return statistics.median(values) if values else None
