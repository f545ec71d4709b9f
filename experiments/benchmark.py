"""Time every method against the best sequential one: `python -m experiments.benchmark [--layers N] [--batch B ...]`.

Sequential programs (reverse mode through a scan, rematerialised by layer, by segment or not, unrolled or not, for both
orders of a state's axes), multigrid gradients by cycles and hierarchy, and one-shot iterations, each a whole training
step with its update. All are timed in turns; medians and quartiles; every ratio is to the fastest sequential program on
one core. Programs slower than 1.5 times the fastest of their kind after two turns are not timed further.

On a CPU one process is pinned to one core, and one more for every number of devices to as many.
"""

import argparse
import itertools
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.config.arguments import Parser, at_least, output_file
from experiments.errors import ConfigError
from experiments.foundation.files import write_output
from experiments.networks.smooth import LAYOUTS, Layout
from experiments.peers.program import Peer, PeerError
from experiments.processes.launchers import refuse_several
from experiments.runs import terminal
from experiments.timing import torch_loop
from experiments.timing.calibration import calibrate
from experiments.timing.contenders import Case, contenders
from experiments.timing.devices import Devices, available_cores, count_cores, last_cores
from experiments.timing.programs import Compiled, compile_program, gradient_of, resident_peak, time_program
from experiments.timing.report import Measured, as_json, peer_json, print_table
from experiments.timing.workers import Worker, WorkerError
from jaxmgrit.analysis.counts import Counts
from jaxmgrit.solvers.mgrit.grids import sweep_batch

SCREENED = 1.5  # times slower than the best of its kind after the first two turns
ERROR_STEPS = 2  # steps before the gradient is compared: a schedule's first has no warm values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        options = _options(sys.argv[1:] if arguments is None else arguments)
        devices = _devices(options)
        facts = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "jax": jax.__version__,
            "repeats": options.repeats,
            "options": {key: value for key, value in vars(options).items() if key != "json"},
        }
        results = []
        for width, batch in itertools.product(options.width, options.batch):
            rough = options.independent, tuple(options.sweeps), tuple(options.kept)
            case = Case(options.layers, width, batch, options.dtype, options.factor, *rough)
            results.append(_case(case, devices, options))
            # After every case, so that an interruption loses but the one that runs.
            if options.json is not None:
                write_output(options.json, json.dumps({**facts, "cases": results}, indent=1) + "\n")
    except (ConfigError, WorkerError, PeerError) as error:
        print("benchmark:", *str(error).splitlines(), sep="\n  ", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the cases that were finished are in the JSON file", file=sys.stderr)
        return 130
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("python -m experiments.benchmark", description=__doc__ and __doc__.partition("\n\n")[0])
    parser.add_argument("--layers", type=at_least(1), default=1024, metavar="N", help="layers of the network")
    parser.add_argument("--width", type=at_least(1), nargs="+", default=[8], metavar="W", help="features of a state")
    parser.add_argument("--batch", type=at_least(1), nargs="+", default=[8, 32, 500, 5000], metavar="B", help="points")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="of everything")
    parser.add_argument("--factor", type=at_least(1), default=32, metavar="M", help="layers per interval and segment")
    parser.add_argument("--independent", action="store_true", help="layers that have nothing in common")
    parser.add_argument(
        "--sweeps", type=at_least(0), nargs="+", default=[], metavar="P", help="Picard sweeps, each too"
    )
    parser.add_argument("--kept", type=at_least(2), nargs="+", default=[16], metavar="M", help="layers they keep")
    parser.add_argument(
        "--devices", type=at_least(1), nargs="+", default=[1], metavar="P", help="devices, each in turn"
    )
    parser.add_argument(
        "--ranks", type=at_least(1), nargs="*", default=[], metavar="P", help="MPI ranks, a device each"
    )
    parser.add_argument("--loop", type=at_least(1), default=1, metavar="K", help="steps in one call of a program")
    parser.add_argument("--platform", choices=["cpu", "gpu"], default="cpu", help="where to run")
    parser.add_argument("--layouts", choices=LAYOUTS, nargs="+", default=list(LAYOUTS), help="first axis of a state")
    parser.add_argument("--repeats", type=at_least(1), default=9, metavar="R", help="times each program is timed")
    parser.add_argument("--only", default="", metavar="TEXT", help="leave out multigrid programs without this text")
    parser.add_argument("--torch", action="store_true", help="also PyTorch's autograd loop, where it is installed")
    parser.add_argument("--peer", action="append", default=[], metavar="COMMAND", help="also another's program")
    parser.add_argument(
        "--json", type=output_file, default=None, metavar="FILE", help="write the results there as well"
    )
    options = parser.parse(arguments)
    refuse_several("experiments.benchmark")
    if options.factor < 2 or options.factor >= options.layers:
        raise ConfigError(
            f"--factor {options.factor}: expected at least 2 and less than --layers {options.layers}. "
            "Take a factor in between, such as 32 for 1024 layers."
        )
    if max(options.kept) >= options.layers:
        raise ConfigError(f"--kept {max(options.kept)}: expected less than --layers {options.layers}. Take fewer.")
    if 1 not in options.devices:
        raise ConfigError(f"--devices {options.devices}: expected 1 among them, which all ratios refer to. Add it.")
    # Asked before anything is measured, and without importing it.
    if options.torch and find_spec("torch") is None:
        raise ConfigError("--torch: PyTorch is not installed here. Install the CPU build, or leave --torch out.")
    return options


def _devices(options: argparse.Namespace) -> list[Devices]:
    wanted = [(count, False) for count in dict.fromkeys(options.devices)]
    wanted += [(count, True) for count in dict.fromkeys(options.ranks)]
    if options.platform != "cpu" or available_cores() is None:
        return [Devices(count, mpi, None, options.platform) for count, mpi in wanted]
    for count, mpi in wanted:
        if count > count_cores():
            raise ConfigError(
                f"--{'ranks' if mpi else 'devices'} {count}: expected at most {count_cores()}, the cores this process "
                "may use. Take fewer."
            )
    return [Devices(count, mpi, last_cores(count)) for count, mpi in wanted]


def compile_contender(
    memory: dict[str, Any], key: str, case: Case, devices: Devices, name: str, layout: Layout, loop: int
) -> Compiled:
    """Task of a worker: make a contender by name."""
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    # By name, as the functions of a program cannot be sent to another process.
    contender = next(c for c in contenders(case, (layout,), devices) if c.name == name)
    return compile_program(memory, key, contender.build, loop)


def _case(case: Case, places: list[Devices], options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and return one case."""
    workers = [Worker(devices) for devices in places]
    peers: list[Peer] = []
    try:
        # First, as one that cannot run should not cost the time of everything else.
        peers.extend(Peer(command, case, places[0].cores) for command in options.peer)
        answers: list[list[float]] = [[] for _ in peers]
        entries = [
            (worker, contender)
            for worker in workers
            for contender in contenders(case, tuple(options.layouts), worker.devices)
            if contender.solver is None or options.only in contender.name
        ]
        rows: list[Measured] = []
        with tqdm(total=len(entries) * (options.repeats + 1), leave=False, disable=not sys.stderr.isatty()) as bar:
            for worker, contender in entries:
                key = f"{contender.name} {contender.layout}"
                bar.set_description(f"compiling {contender.name}")
                compiled = worker.ask(
                    compile_contender, key, case, worker.devices, contender.name, contender.layout, options.loop
                )
                rows.append(Measured(contender, worker, key, compiled))
                bar.update()
            _compare_gradients(rows)
            for turn in range(options.repeats):
                bar.set_description(f"turn {turn + 1} of {options.repeats}")
                for row in rows if turn < 2 else _worth_timing(rows):
                    row.times.append(row.worker.ask(time_program, row.key))
                    bar.update()
                for peer, times in zip(peers, answers, strict=True):
                    times.append(peer.run())
        best = min((r for r in rows if r.contender.kind == "sequential"), key=lambda r: r.median)
        for row in rows:
            if row.median <= SCREENED * best.median or row.contender.name == "scan":
                row.resident = row.worker.ask(resident_peak, row.key)
        _predict(rows, case)
        result = as_json(case, rows, best)
        if options.torch:
            result["torch_milliseconds"] = 1e3 * workers[0].ask(torch_loop.time_loop, case, options.repeats)
        if peers:
            result["peers"] = [peer_json(p.command, t, best) for p, t in zip(peers, answers, strict=True)]
        print_table(result)
        return result
    finally:
        for worker in workers:
            worker.close()
        for peer in peers:
            peer.close()


def _worth_timing(rows: list[Measured]) -> list[Measured]:
    def group(row: Measured) -> Any:
        return row.contender.kind, row.worker.devices

    best: dict[Any, float] = {}
    for row in rows:
        best[group(row)] = min(best.get(group(row), np.inf), row.median)
    return [row for row in rows if row.median <= SCREENED * best[group(row)]]


def _compare_gradients(rows: list[Measured]) -> None:
    """Relative Euclidean error of every gradient against that of the plain scan in the same layout."""
    exact: dict[str, Any] = {}
    # The plain scans come first, and so are what `setdefault` makes the references.
    for row in sorted(rows, key=lambda r: r.contender.name != "scan"):
        for _ in range(ERROR_STEPS):
            row.worker.ask(time_program, row.key)
        gradient = np.concatenate([np.ravel(x) for x in jax.tree.leaves(row.worker.ask(gradient_of, row.key))])
        reference = exact.setdefault(row.contender.layout, gradient)
        row.error = float(np.linalg.norm(gradient - reference) / np.linalg.norm(reference))


def _predict(rows: list[Measured], case: Case) -> None:
    """What the counts and the measured cost of one Phi, one pullback and one message predict."""
    known: dict[Any, Any] = {}
    for row in rows:
        contender, devices = row.contender, row.worker.devices
        if contender.counts is None or contender.solver is None:
            continue
        level = contender.solver.hierarchy(case.layers, devices.count)[0]
        state = np.zeros((case.batch, case.width), case.dtype)
        batch = sweep_batch(contender.solver, state, devices.platform, level.share)
        # The number of cycles does not change what a Phi costs: such solvers share a calibration.
        what = (contender.layout, devices, replace(contender.solver, cycles=1), level.factor, batch)
        if what not in known:
            known[what] = row.worker.ask(calibrate, case, *what)
        costs = known[what]
        row.parts = [[costs.seconds((Counts(),) * i + (c,)) for i, c in enumerate(part)] for part in contender.counts]


if __name__ == "__main__":
    terminal.run(main)
