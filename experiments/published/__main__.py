"""Scaling as published: `python -m experiments.published [--folder F] [--cases NAME ...] [--devices P ...]`.

Weak: one gradient of N = 4 P layers on P devices by multilevel V- and F-cycles (m = 4, two for the state and two for
the adjoint), and a one-shot step. Strong: N = 1024 layers as wide as the level-set network's, and N = 512 as wide as
the published one of Indian Pines (random states of that width), by cycles and by one-shot steps, beside the batch
split (a device's share measured, its all-reduce modelled) and the pipeline's formula P M / (M + P - 1). Steps are
measured on as many devices as there are cores, and modelled beyond: what a device does is counted in the program, what
it costs is measured. F/published.json and F/published.png are written.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from experiments.config.arguments import Parser, at_least, path
from experiments.errors import ConfigError
from experiments.foundation.files import make_folder, write_output
from experiments.pictures.published import draw
from experiments.processes.launchers import refuse_several
from experiments.published import ways
from experiments.runs import terminal
from experiments.timing.contenders import Case
from experiments.timing.devices import Devices, count_cores, last_cores
from experiments.timing.workers import Worker, WorkerError

MICRO_BATCHES = 8
CASES = {"level sets": (1024, 8, 500), "Indian Pines size": (512, 200, 64)}  # layers, features, points


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = Parser("python -m experiments.published", description="Weak and strong scaling as published.")
    powers = [2**k for k in range(11)]
    parser.add_argument("--folder", type=path, default=Path("runs/published"), help="for figures and picture")
    parser.add_argument("--cases", choices=CASES, nargs="*", default=list(CASES), help="of strong scaling")
    parser.add_argument("--devices", type=at_least(1), nargs="+", default=powers, metavar="P", help="all are modelled")
    try:
        options = parser.parse(sys.argv[1:] if arguments is None else arguments)
        refuse_several("experiments.published")
        make_folder(options.folder)
        for result in scale(options):  # after every part, so that an interruption loses but the one that runs
            write_output(options.folder / "published.json", json.dumps(result, indent=1) + "\n")
        draw(result, options.folder / "published.png")
    except (ConfigError, WorkerError) as error:
        print("published:", *str(error).splitlines(), sep="\n  ", file=sys.stderr)
        return 2
    return 0


def scale(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Milliseconds of iterations by devices and way, measured and modelled, and the counts of the weak ones, so far."""
    most = min(2, count_cores())
    one, *more = (Worker(Devices(n, cores=last_cores(n))) for n in range(1, most + 1))
    try:
        places = [one, *more]
        _, width, batch = CASES["level sets"]
        weak_case = Case(256, width, batch, "float32", 16)
        result: dict[str, Any] = {"jax": jax.__version__, "batch": batch, "micro_batches": MICRO_BATCHES}
        message = more[0].ask(ways.message, weak_case) if more else (0.0, 0.0)
        result["message"] = message
        known = ways.Known(one.ask, weak_case, message)
        result["published_weak"] = [_weak(n, known, weak_case, places) for n in sorted(options.devices)]
        result["published_strong"] = {}
        yield result
        for name in options.cases:
            layers, width, batch = CASES[name]
            result["published_strong"][name] = _strong(Case(layers, width, batch, "float32", 16), options, places)
            yield result
    finally:
        for worker in (one, *more):
            worker.close()


def _weak(devices: int, known: ways.Known, case: Case, places: list[Worker]) -> dict[str, Any]:
    layers = ways.SHARE * devices
    row: dict[str, Any] = {"devices": devices, "layers": layers, "counts": {}}
    for name, way in ways.WEAK.items():
        try:
            row["counts"][name] = ways.path(ways.counted(way, layers, devices, ways.sizes_of(case)))
        except ValueError:  # too few layers for the schedule
            continue
    _times(row, ways.WEAK, known, Case(layers, case.width, case.batch, case.dtype, ways.SHARE), places)
    return row


def _strong(case: Case, options: argparse.Namespace, places: list[Worker]) -> dict[str, Any]:
    """A case's rows, the sequential time and the lines beside them."""
    one = places[0]
    message = places[1].ask(ways.message, case) if len(places) > 1 else (0.0, 0.0)
    known, rows = ways.Known(one.ask, case, message), []
    sequential = one.ask(ways.alone, case)
    for devices in sorted(options.devices):
        row: dict[str, Any] = {"devices": devices, "layers": case.layers}
        _times(row, ways.STRONG, known, case, places)
        if devices <= case.batch:
            share = one.ask(ways.alone, Case(case.layers, case.width, case.batch // devices, case.dtype, case.factor))
            size = case.layers * ways.sizes_of(case).layer
            # Up and down a tree; of a long message, which is cut to pieces, every byte passes each device twice.
            sent = 2 * (math.ceil(math.log2(devices)) * message[0] + size * message[1]) if devices > 1 else 0.0
            row["batch split"] = 1e3 * (share + sent)
        row["pipeline"] = 1e3 * sequential * (MICRO_BATCHES + devices - 1) / (devices * MICRO_BATCHES)
        rows.append(row)
    crossing = {
        name: next((r["devices"] for r in rows if r["modelled"].get(name, math.inf) < 1e3 * sequential), None)
        for name in ways.STRONG
    }
    print(f"crossing over, at devices: {crossing}", flush=True)
    return {
        "case": asdict(case),
        "sequential": 1e3 * sequential,
        "message": message,
        "crossing": crossing,
        "rows": rows,
    }


def _times(
    row: dict[str, Any], compared: dict[str, ways.Way], known: ways.Known, case: Case, places: list[Worker]
) -> None:
    """Put modelled and measured milliseconds into a row."""
    devices: int = row["devices"]
    row["modelled"], row["measured"] = {}, {}
    for name, way in compared.items():
        try:
            row["modelled"][name] = 1e3 * known.seconds(name, way, case.layers, devices)
        except ValueError:  # fewer intervals than devices, or too few layers
            continue
        if devices <= len(places):
            place = places[devices - 1]
            row["measured"][name] = 1e3 * place.ask(ways.step, case, place.devices, way)
    figures = (f"{n}: {ms:.2f} ({row['measured'].get(n, math.nan):.2f})" for n, ms in row["modelled"].items())
    print(f"{case.layers} layers on {devices}, ms modelled (measured):", *figures, sep="  ", flush=True)


if __name__ == "__main__":
    terminal.run(main)
