"""Train on rough layers, method beside method: `python -m experiments.rough CONFIG [--seeds S ...] [--folder F] ...`.

The config's network is trained sequentially, one-shot as the config says (with Picard sweeps), likewise under control,
and one-shot with averaged layers and the midpoint step or with injection, from the same initial values on the same
batches, for several seeds. Beside every exact evaluation stands how far the gradient in use is from the exact one, by
how much a cycle contracts on the layers as they are then, and what the law of Picard sweeps says of it. Prints tables
and writes `trainings.json` and `trainings.png` into a folder. Exit code 0: done; 2: it cannot be done.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from experiments import problems
from experiments.config.arguments import Parser, at_least, path
from experiments.config.reader import read
from experiments.config.schema import Config
from experiments.config.solver import solver
from experiments.errors import ConfigError
from experiments.foundation.files import make_folder, write_output
from experiments.rough.contraction import measuring
from experiments.rough.picture import draw
from experiments.rough.table import along, outcome
from experiments.runs import terminal
from experiments.training import build
from experiments.training.controller import Controller
from experiments.training.records import Row, figures
from experiments.training.session import Session

Point = dict[str, float | None]
# What only Picard's layers can honour is set back: `model_copy` checks nothing.
ONE_LAYER = {"exact_first": 0, "inner_values": False}
METHODS: dict[str, dict[str, Any]] = {
    "sequential": {},
    "picard": {},
    "control": {},
    "average": {"coarse_params": "average", "coarse_step": "midpoint", **ONE_LAYER},
    "injection": {"coarse_params": "injection", "coarse_step": "same_step", **ONE_LAYER},
}
KEPT = ("exact_train_loss", "exact_train_accuracy", "exact_validation_loss", "exact_validation_accuracy")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        options, rest = _parser().split(sys.argv[1:] if arguments is None else arguments)
        config = read(rest, "experiments.rough")
        if config.solver.coarse_step != "picard" or config.training.method != "one_shot":
            raise ConfigError("expected a one-shot training with solver.coarse_step = 'picard'; the others are added.")
        make_folder(options.folder)
        _compare(config, options)
    except ConfigError as error:
        print("rough:", *str(error).splitlines(), sep="\n  ", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the trainings that were finished are in the folder", file=sys.stderr)
        return 130
    return 0


def _parser() -> Parser:
    usage = "%(prog)s CONFIG [--seeds S ...] [--methods M ...] [--folder F] [--key VALUE ...]"
    parser = Parser("python -m experiments.rough", usage)
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[0], metavar="S", help="of data and network")
    usual = [method for method in METHODS if method != "control"]
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=usual, help="in this order")
    parser.add_argument("--folder", type=path, default=Path("runs/rough"), help="for table and picture")
    return parser


def variant(config: Config, method: str, seed: int) -> Config:
    """The config of one training."""
    how = "sequential" if method == "sequential" else "one_shot"
    control = config.control.model_copy(update={"active": method == "control"})
    training = config.training.model_copy(update={"method": how})
    update: dict[str, Any] = {"seed": seed, "control": control, "training": training}
    for section in ("solver", "adjoint"):
        update[section] = getattr(config, section).model_copy(update=METHODS[method])
    return config.model_copy(update=update)


class Trained(NamedTuple):
    """A training that has come to its end.

    Attributes:
        points: For every exact evaluation: the iteration, seconds of updates so far, exact losses and accuracies, and
            (of inexact gradients, but before the first iteration) cosine and relative distance to the exact gradient,
            how a cycle contracts, and the law of it.
        sweeps: Fused sweeps an iteration, control's included.
        serial: Sequential gradients, those of control included.
        events: What control has decided.
    """

    points: list[Point]
    sweeps: float
    serial: int
    events: list[Row]


def train(config: Config) -> Trained:
    """Train to the end."""
    data = problems.load(config.problem, config.seed)
    session, control, points, seconds = Session(config, data), Controller(config), [], 0.0
    events: list[Row] = []
    one_shot = config.training.method == "one_shot"
    contraction = measuring(session.trainer.problem, solver(config.solver)) if one_shot else None
    session.begin()
    for iteration in range(config.iterations + 1):
        at_end = iteration == config.iterations
        if at_end or iteration % config.evaluation.every == 0:
            exact = session.evaluate(at_end, lambda: 0)
            point: Point = {"iteration": iteration, "seconds": seconds, **{key: exact[key] for key in KEPT}}
            if contraction is not None:
                point |= contraction(session.trainer.params(session.state), session.points(iteration))
            if one_shot and iteration > 0:
                counted = session.sweeps, session.serial
                measured = session.measure(iteration, control.cycles[session.course.control.rung])
                session.sweeps, session.serial = counted  # a look from outside
                point |= {"cosine": measured.cosine, "distance": measured.distance}
            points.append(point)
        if not at_end:
            # An update brings its figures to the host, so the clock waits for the device.
            start = time.perf_counter()
            events += control.watch(session, iteration)
            info = session.update(iteration)
            course = session.course
            course.control = control.observe(course.control, figures(info) | {"mismatch": float(info.mismatch)})
            seconds += time.perf_counter() - start
    return Trained(points, session.sweeps / config.iterations, session.serial, events)


def _compare(config: Config, options: argparse.Namespace) -> None:
    """Train by every method for every seed, print the table, write file and picture."""
    build.prepare_jax(config)
    runs: list[dict[str, Any]] = []
    todo = [(seed, method) for seed in options.seeds for method in options.methods]
    with tqdm(todo, leave=False, disable=not sys.stderr.isatty()) as bar:
        for seed, method in bar:
            runs.append({"method": method, "seed": seed, **train(variant(config, method, seed))._asdict()})
            if not sys.stderr.isatty():
                print(f"{method}, seed {seed}: {outcome(runs[-1:])}", flush=True)
            # After every training, so that an interruption loses but the one that runs.
            whole = {"config": config.model_dump(mode="json"), "runs": runs}
            write_output(options.folder / "trainings.json", json.dumps(whole) + "\n")
    print(f"\nafter {config.iterations} iterations, exactly evaluated; medians of seeds {options.seeds}")
    of = {method: [run for run in runs if run["method"] == method] for method in options.methods}
    for method, own in of.items():
        print(f"{method:12} {outcome(own)}")
    for method, own in of.items():
        if lines := along(own):
            print(f"\nalong the training, {method}", *lines, sep="\n")
    draw(runs, config, options.folder / "trainings.png")


if __name__ == "__main__":
    terminal.run(main)
