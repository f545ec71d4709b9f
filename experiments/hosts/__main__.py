"""Steps of training over two hosts: `python -m experiments.hosts [--mpi] [--output FILE] ...`, as root on Linux.

For one link after another, two processes on the two ends of it measure what messages take and what steps of training
take. The model is fitted to two links: steps and messages are measured on the first, and from the messages alone on the
first one of more latency follows how often each kind crosses the link (a library shakes hands before it sends, say).
With it the steps over every other link are predicted: those over the first one, and what the messages that are counted
in the program take longer.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.config.arguments import Parser, at_least, output_file, path
from experiments.errors import ConfigError
from experiments.hosts import probe
from experiments.hosts.namespaces import ADDRESSES, Hosts, HostsError
from experiments.runs import terminal
from experiments.timing.calibration import KINDS
from jaxmgrit.analysis.cost_model import Sizes, iteration_counts, total

# Bits per second, seconds; the first two are what the model is fitted to.
LINKS = ((1e9, 0.0), (1e9, 5e-3), (1e10, 0.0), (1e8, 0.0), (1e9, 5e-5), (1e9, 5e-4), (1e8, 1e-3))
# Sums for the gradient's norm, which is the trainer's and not the iteration's: XLA makes one of every array of a layer.
NORM = {False: 2, True: 1}  # of jax.distributed, of MPI
PORT = 47700  # any will do: the hosts have ports of their own
PATIENCE = 300.0  # seconds that a link may take


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = Parser("python -m experiments.hosts", description="Steps of training over two hosts on this machine.")
    parser.add_argument("--mpi", action="store_true", help="two MPI ranks rather than processes of jax.distributed")
    parser.add_argument("--layers", type=at_least(8), default=256, help="of the network")
    parser.add_argument("--width", type=at_least(1), default=8, help="features of a state")
    parser.add_argument("--batch", type=at_least(1), default=256, help="points")
    parser.add_argument("--factor", type=at_least(2), default=16, help="layers of an interval")
    parser.add_argument(
        "--links", type=_link, nargs="+", default=LINKS, help="Gbit/s:ms ..., the model is fitted to the first"
    )
    crossings_of = [kind.upper() for kind in KINDS]
    parser.add_argument("--crossings", type=at_least(0), nargs=3, metavar=tuple(crossings_of), help="given, not fitted")
    parser.add_argument("--figures", type=path, help="predict from what --output wrote before; measure nothing")
    parser.add_argument("--output", type=output_file, help="for the figures, as JSON")
    try:
        options = parser.parse(sys.argv[1:] if arguments is None else arguments)
        rows = _read(options.figures) if options.figures else [_measured(options, *x) for x in _shown(options.links)]
    except (ConfigError, HostsError, subprocess.TimeoutExpired) as error:
        print(f"hosts: {error}", file=sys.stderr)
        return 2
    counts = _messages(options)
    trips = dict(zip(KINDS, options.crossings, strict=True)) if options.crossings else crossings(rows)
    for row in rows:
        row["predicted"] = predicted(rows[0], row, counts, trips)
    print(table(rows, trips))
    if options.output:
        record = {"jax": jax.__version__, "options": vars(options), "counts": counts, "crossings": trips, "links": rows}
        options.output.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
    return 0


def crossings(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How often a message of each kind crosses the link, one crossing after another; none where no latency differs."""
    fitted = rows[0]
    for row in rows:
        if (latency := row["latency"] - fitted["latency"]) > 0:
            return {kind: (seconds - fitted["messages"][kind]) / latency for kind, seconds in row["messages"].items()}
    return dict.fromkeys(fitted["messages"], 0.0)


def predicted(
    fitted: dict[str, Any], row: dict[str, Any], counts: dict[str, dict[str, int]], trips: dict[str, float]
) -> dict[str, float]:
    """Seconds of the steps over a link from those over the fitted one.

    Args:
        fitted: What was measured over the first link.
        row: The link's latency and bandwidth.
        counts: Of every step: messages by kind, and bytes.
        trips: As of `crossings`.
    """
    latency = row["latency"] - fitted["latency"]
    byte = 8 / row["bandwidth"] - 8 / fitted["bandwidth"]
    return {
        name: fitted["steps"][name] + sum(n[kind] * trips[kind] for kind in trips) * latency + n["bytes"] * byte
        for name, n in counts.items()
    }


def table(rows: Sequence[dict[str, Any]], trips: dict[str, float]) -> str:
    """Measured and predicted times of all links."""
    lines = [f"{'Gbit/s':>7} {'ms':>6}  {'':<22} {'measured':>9} {'predicted':>9}  ratio"]
    for row in rows:
        link = f"{row['bandwidth'] / 1e9:7g} {row['latency'] * 1e3:6g}"
        for name, seconds in row["predicted"].items():
            measured = row["steps"][name]
            figures = f"{measured * 1e3:9.3f} {seconds * 1e3:9.3f}  {measured / seconds:5.2f}"
            lines.append(f"{link}  {name:<22} {figures}")
            link = " " * len(link)
    each = ", ".join(f"{kind} {value:.2f}" for kind, value in trips.items())
    return "\n".join([*lines, "", f"Times in ms. Crossings of the link by a message: {each}."])


def _measured(options: argparse.Namespace, bandwidth: float, latency: float) -> dict[str, Any]:
    with Hosts(bandwidth, latency) as hosts, tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        sizes = [str(getattr(options, name)) for name in ("layers", "width", "batch", "factor")]
        command = [sys.executable, "-m", "experiments.hosts.probe", str(out), *sizes]
        if options.mpi:
            commands = [[*hosts.mpirun(Path(folder)), *command, "mpi"]]
        else:
            commands = [hosts.on(i, [*command, f"{ADDRESSES[0]}:{PORT}", str(i)]) for i in range(2)]
        _run(commands)
        measured: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return {"bandwidth": bandwidth, "latency": latency, **measured}


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["links"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--figures {file}: expected what --output wrote ({error}).") from None
    return rows


def _run(commands: list[list[str]]) -> None:
    # A file, not a pipe: nobody reads while processes are waited for, and a full pipe would stop them.
    with tempfile.TemporaryFile("w+") as said:
        started = [subprocess.Popen(c, stdout=said, stderr=said) for c in commands]
        deadline = time.monotonic() + PATIENCE
        try:
            codes = [p.wait(deadline - time.monotonic()) for p in started]
        finally:
            for p in started:
                p.kill()
                p.wait()
        if any(codes):
            said.seek(0)
            raise HostsError(f"the processes ended with codes {codes}:\n{said.read()[-2000:]}")


def _messages(options: argparse.Namespace) -> dict[str, dict[str, int]]:
    """How many messages of each kind a step sends, and how many bytes."""
    # Of float32 numbers, as in the probe; a layer has a matrix and a bias.
    state, layer = 4 * options.width * options.batch, 4 * options.width * (options.width + 1)
    counts = {}
    for name, (solver, schedule) in probe.schedules(options.factor).items():
        sizes = Sizes(state, layer, 4)
        parts = iteration_counts(schedule, options.layers, solver, solver, 2, sizes)
        together = total((*parts[0], *parts[1]))
        counts[name] = {kind: getattr(together, kind) for kind in (*KINDS, "bytes")}
        counts[name]["sums"] += NORM[options.mpi]
    return counts


def _link(word: str) -> tuple[float, float]:
    bandwidth, _, latency = word.partition(":")
    try:
        link = float(bandwidth) * 1e9, float(latency or 0) * 1e-3
    except ValueError:
        link = -1.0, -1.0
    if not (1e6 <= link[0] <= 1e11 and 0 <= link[1] <= 1):
        raise argparse.ArgumentTypeError(
            f"expected Gbit/s:ms with 0.001 .. 100 Gbit/s and 0 .. 1000 ms, given {word!r}"
        )
    return link


def _shown(links: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The links, each said before it is measured."""
    for i, (bandwidth, latency) in enumerate(links):
        print(f"link {i + 1} of {len(links)}: {bandwidth / 1e9:g} Gbit/s, {latency * 1e3:g} ms", file=sys.stderr)
        yield bandwidth, latency


if __name__ == "__main__":
    terminal.run(main)
