"""What a benchmark has measured, as JSON and as a table."""

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from experiments.timing.contenders import Case, Contender
from experiments.timing.programs import Compiled
from experiments.timing.workers import Worker


@dataclass
class Measured:
    """A contender in one place, and what was measured of it.

    Attributes:
        contender: What it is.
        worker: Where it runs.
        key: Its name there.
        compiled: How that went.
        error: Of its gradient, relatively.
        resident: Bytes of memory that it made the process grow by.
        parts: Seconds by the model, up to the loss and from there on, each level by level; None: it says nothing.
        times: Measured, in seconds.
    """

    contender: Contender
    worker: Worker
    key: str
    compiled: Compiled
    error: float | None = None
    resident: int | None = None
    parts: list[list[float]] | None = None
    times: list[float] = field(default_factory=list)

    @property
    def predicted(self) -> float | None:
        """Seconds by the model."""
        return None if self.parts is None else sum(map(sum, self.parts))

    @property
    def median(self) -> float:
        """Of the times, in seconds."""
        return statistics.median(self.times)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Of the times, in seconds."""
        first, third = np.quantile(self.times, [0.25, 0.75])
        return float(first), float(third)


def as_json(case: Case, rows: list[Measured], best: Measured) -> dict[str, Any]:
    """A case as it is written to a file; ratios are to `best`, the fastest sequential program."""
    return {
        "case": asdict(case),
        "tuned": {"name": best.contender.name, "layout": best.contender.layout, "milliseconds": 1e3 * best.median},
        "programs": [
            {
                "name": row.contender.name,
                "kind": row.contender.kind,
                "layout": row.contender.layout,
                "devices": row.worker.devices.count,
                "mpi": row.worker.devices.mpi,
                "cores": row.worker.devices.cores and len(row.worker.devices.cores),
                "milliseconds": 1e3 * row.median,
                "quartiles": [1e3 * q for q in row.quartiles],
                "timed": len(row.times),
                "ratio": row.median / best.median,
                "gradient_error": row.error,
                "compile_seconds": row.compiled.seconds,
                "temporary_bytes": row.compiled.temporary,
                "resident_bytes": row.resident,
                "predicted_milliseconds": None if row.predicted is None else 1e3 * row.predicted,
                "predicted_parts": row.parts and [[1e3 * seconds for seconds in part] for part in row.parts],
            }
            for row in rows
        ],
    }


def peer_json(command: str, times: list[float], best: Measured) -> dict[str, Any]:
    """The times of another's program as they are written to a file, in seconds as it gave them."""
    median = statistics.median(times)
    return {
        "command": command,
        "milliseconds": 1e3 * median,
        "quartiles": [1e3 * float(q) for q in np.quantile(times, [0.25, 0.75])],
        "ratio": median / best.median,
    }


def print_table(result: dict[str, Any]) -> None:
    """Print a case, the fastest programs of each kind first."""
    case, tuned = result["case"], result["tuned"]
    print(
        f"\nN = {case['layers']}, width {case['width']}, batch {case['batch']}, {case['dtype']}; tuned sequential: "
        f"{tuned['name']} ({tuned['layout']}), {tuned['milliseconds']:.2f} ms"
    )
    print(
        f"{'method':50} {'layout':12} {'devices':>8} {'ms':>8} {'quartiles':>17} {'ratio':>6} {'error':>8} "
        f"{'model':>8} {'compile':>8} {'temp MB':>8} {'grown MB':>8}"
    )
    order = {"sequential": 0, "data parallel": 1, "gradient": 2, "one-shot": 3}
    rows = sorted(result["programs"], key=lambda r: (order[r["kind"]], r["devices"], r["milliseconds"]))
    turns = max(row["timed"] for row in rows)
    # The plain scan is what users write, so it is shown however slow.
    shown = [row for row in rows if row["timed"] == turns or row["name"] == "scan"]
    if len(shown) < len(rows):
        print(f"({len(rows) - len(shown)} slower programs are in the JSON file only)")
    for row in shown:
        low, high = row["quartiles"]
        model = row["predicted_milliseconds"]
        where = f"{row['devices']} ranks" if row["mpi"] else row["devices"]
        grown = row["resident_bytes"]
        print(
            f"{row['name']:50} {row['layout']:12} {where:>8} {row['milliseconds']:8.2f} "
            f"{f'{low:.2f}-{high:.2f}':>17} {row['ratio']:6.2f} {row['gradient_error']:8.1e} "
            f"{'' if model is None else f'{model:.2f}':>8} {row['compile_seconds']:7.2f}s "
            f"{row['temporary_bytes'] / 1e6:8.1f} {'' if grown is None else f'{grown / 1e6:.1f}':>8}",
            flush=True,
        )
    ratios = [row["predicted_milliseconds"] / row["milliseconds"] for row in rows if row["predicted_milliseconds"]]
    near = sum(0.75 <= ratio <= 1.25 for ratio in ratios)
    print(f"the model is within 25 % for {near} of {len(ratios)} programs")
    for peer in result.get("peers", ()):
        print(f"{peer['command']}, gradient only: {peer['milliseconds']:.2f} ms, ratio {peer['ratio']:.2f}")
    if "torch_milliseconds" in result:
        print(f"PyTorch autograd loop, gradient only, {result['torch_milliseconds']:.2f} ms")
