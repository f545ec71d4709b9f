"""Wall time until the exact validation accuracy holds a target: `python -m experiments.time_to_accuracy CONFIG ...`.

Trains the config's network, from the same initial values, sequentially on one core and on all of them, and one-shot on
one device (one core), on two, and on two MPI ranks where there is MPI, for several seeds and learning rates, one after
another; every method is judged by the rate with the smallest median time. The clock runs during iterations only: not
while compiling, nor while the network is evaluated exactly. Prints a table and writes `times.json` and `accuracy.png`
into a folder.
"""

import argparse
import copy
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import jax
from tqdm import tqdm

from experiments import problems
from experiments.config.arguments import Parser, above, at_least, path
from experiments.config.reader import read
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.foundation.files import make_folder, write_output
from experiments.pictures.time_to_accuracy import best_rates, draw
from experiments.processes.launchers import refuse_several
from experiments.runs import terminal
from experiments.timing.devices import Devices, count_cores, last_cores
from experiments.timing.workers import Worker, WorkerError
from experiments.training import build, programs
from experiments.training.batches import Batches
from experiments.training.evaluation import evaluator


@dataclass(frozen=True)
class Method:
    """How to train, and where.

    Attributes:
        name: for tables and pictures.
        training: `training.method`.
        devices: JAX's.
        cores: how many.
        mpi: whether every device is that of an MPI rank.
    """

    name: str
    training: str
    devices: int
    cores: int
    mpi: bool = False

    def config(self, config: Config, rate: float, seed: int) -> Config:
        """The config of one run; sequential training has no lag in its gradients to be anticipated."""
        sequential = self.training == "sequential"
        optimizer = {"learning_rate": rate} | ({"anticipate": 0.0} if sequential else {})
        return config.model_copy(
            update={
                "seed": seed,
                "training": config.training.model_copy(update={"method": self.training}),
                "optimizer": config.optimizer.model_copy(update=optimizer),
                "backend": config.backend.model_copy(update=self._backend),
            }
        )

    @property
    def _backend(self) -> dict[str, Any]:
        if self.mpi:
            return {"kind": "mpi", "devices": None}
        return {"kind": "local" if self.devices == 1 else "mesh", "devices": self.devices}


@dataclass(frozen=True)
class Curve:
    """A run: after each exact evaluation, iterations done, seconds on the clock, exact validation accuracy.

    Attributes:
        points: (iteration, seconds, accuracy).
        reached: index of the evaluation from which the target held; None if it never did.
    """

    points: list[tuple[int, float, float]]
    reached: int | None

    @property
    def seconds(self) -> float:
        """Until the target was reached; infinite if it was not."""
        return math.inf if self.reached is None else self.points[self.reached][1]

    @property
    def iterations(self) -> float:
        """Until the target was reached; infinite if it was not."""
        return math.inf if self.reached is None else self.points[self.reached][0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        options, rest = _parser().split(sys.argv[1:] if arguments is None else arguments)
        refuse_several("experiments.time_to_accuracy")
        config = read(rest, "experiments.time_to_accuracy")
        if config.training.method == "sequential":
            raise ConfigError(
                "training.method = 'sequential': expected one_shot; sequential training is compared with in any case."
            )
        make_folder(options.folder)
        compare(config, options)
    except (ConfigError, WorkerError) as error:
        print("time_to_accuracy:", *str(error).splitlines(), sep="\n  ", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the runs that were finished are in the folder", file=sys.stderr)
        return 130
    return 0


def _parser() -> Parser:
    usage = "%(prog)s CONFIG [--target A] [--seeds S ...] [--rates R ...] [--folder F] [--key VALUE ...]"
    parser = Parser("python -m experiments.time_to_accuracy", usage)
    parser.add_argument("--target", type=above(0, 1), default=0.97, metavar="A", help="exact validation accuracy")
    parser.add_argument(
        "--hold", type=at_least(1), default=3, metavar="K", help="evaluations in a row that must reach it"
    )
    parser.add_argument(
        "--seeds", type=at_least(0), nargs="+", default=[0, 1, 2], metavar="S", help="of data and network"
    )
    parser.add_argument("--rates", type=above(0), nargs="+", default=[0.02, 0.04], metavar="R", help="learning rates")
    parser.add_argument("--folder", type=path, default=Path("runs/time_to_accuracy"), help="for table and picture")
    return parser


def methods() -> list[Method]:
    """What is compared on this machine."""
    cores = count_cores()
    chosen = [Method("sequential, 1 core", "sequential", 1, 1), Method("one-shot, 1 device", "one_shot", 1, 1)]
    if cores > 1:
        chosen.insert(1, Method(f"sequential, {cores} cores", "sequential", 1, cores))
        chosen.append(Method("one-shot, 2 devices", "one_shot", 2, 2))
        if find_spec("mpi4jax") is not None and which("mpirun") is not None:
            chosen.append(Method("one-shot, 2 MPI ranks", "one_shot", 2, 2, mpi=True))
    return chosen


def train(memory: Any, config: Config, target: float, hold: int) -> Curve:
    """Task of a worker: train until the target has held, or the config's iterations are over."""
    build.prepare_jax(config)
    data = problems.load(config.problem, config.seed)
    trainer, batches = build.trainer(config), Batches(config, data)
    state = build.initial_state(config, data, trainer, batches)
    update = programs.update(trainer, batches)
    accuracy = evaluator(trainer.problem, trainer.evaluate, data.validation, config.dtype)
    # On a copy, as an iteration uses up the state it is given.
    jax.block_until_ready(update(copy.deepcopy(state), batches.at(0)))  # compiles
    points: list[tuple[int, float, float]] = [(0, 0.0, accuracy(state)[1])]
    seconds, done, held = 0.0, 0, 0
    while done < config.iterations and held < hold:
        start = time.perf_counter()
        for _ in range(min(config.evaluation.every, config.iterations - done)):
            state, _ = update(state, batches.at(done))
            done += 1
        jax.block_until_ready(state)
        seconds += time.perf_counter() - start
        points.append((done, seconds, accuracy(state)[1]))
        held = held + 1 if points[-1][2] >= target else 0
    return Curve(points, len(points) - hold if held == hold else None)


def compare(config: Config, options: argparse.Namespace) -> None:
    """Run everything, print the table, write file and picture."""
    result: dict[str, Any] = {}
    runs: list[dict[str, Any]] = []
    todo = list(itertools.product(options.seeds, options.rates, methods()))
    with tqdm(todo, leave=False, disable=not sys.stderr.isatty()) as bar:
        for seed, rate, method in bar:
            bar.set_description(f"{method.name}, rate {rate:g}, seed {seed}")
            # A new process for every run: cores, devices and MPI are fixed when it begins.
            worker = Worker(Devices(method.devices, method.mpi, last_cores(method.cores)))
            try:
                curve = worker.ask(train, method.config(config, rate, seed), options.target, options.hold)
            finally:
                worker.close()
            one = {"method": method.name, "rate": rate, "seed": seed}
            runs.append(one | {"reached": curve.reached, "points": curve.points})
            if not sys.stderr.isatty():
                print(f"{method.name}, rate {rate:g}, seed {seed}: {_seconds(curve.seconds)}", flush=True)
            result = _write(runs, config, options)
    _table(result)
    draw(result, options.folder / "accuracy.png")


def _table(result: dict[str, Any]) -> None:
    best = {name: (rate, [_curve(run) for run in runs]) for name, (rate, runs) in best_rates(result).items()}
    reference = statistics.median(curve.seconds for curve in best["sequential, 1 core"][1])
    print(f"\ntime to {result['target']:.1%} exact validation accuracy, held for {result['hold']} evaluations")
    print(f"{'method':22} {'rate':>6} {'median s':>9} {'of seeds':>20} {'iterations':>10} {'ratio':>6}")
    for name, (rate, curves) in best.items():
        seconds = statistics.median(curve.seconds for curve in curves)
        iterations = statistics.median(curve.iterations for curve in curves)
        spread = " ".join(_seconds(curve.seconds) for curve in curves)
        ratio = f"{seconds / reference:.2f}" if math.isfinite(seconds) and math.isfinite(reference) else "-"
        print(f"{name:22} {rate:6g} {_seconds(seconds):>9} {spread:>20} {iterations:10.0f} {ratio:>6}")


def _curve(run: Mapping[str, Any]) -> Curve:
    return Curve(run["points"], run["reached"])


def _seconds(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "never"


def _write(runs: list[dict[str, Any]], config: Config, options: argparse.Namespace) -> dict[str, Any]:
    """Write the runs there are so far; what has been written."""
    whole = {"target": options.target, "hold": options.hold, "config": config.model_dump(mode="json"), "runs": runs}
    write_output(options.folder / "times.json", json.dumps(whole) + "\n")
    return whole


if __name__ == "__main__":
    terminal.run(main)
