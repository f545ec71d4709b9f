"""Train on rough layers, method beside method: `python -m experiments.rough CONFIG [--seeds S ...] [--folder F] ...`.

The config's network is trained sequentially, one-shot as the config says (with Picard sweeps), and one-shot with
averaged layers and the midpoint step or with injection, from the same initial values on the same batches, for several
seeds. Beside every exact evaluation stands how far the gradient in use is from the exact one. Prints a table and writes
`trainings.json` and `trainings.png` into a folder. Exit code 0: done; 2: it cannot be done.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments import problems
from experiments.config.arguments import Parser, at_least, path
from experiments.config.reader import read
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.foundation.files import make_folder
from experiments.rough.picture import draw
from experiments.runs import terminal
from experiments.training import build
from experiments.training.session import Session

Point = dict[str, float | None]
# What only Picard's layers can honour is set back: `model_copy` checks nothing.
ONE_LAYER = {"exact_first": 0, "inner_values": False}
METHODS: dict[str, dict[str, Any]] = {
    "sequential": {},
    "picard": {},
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
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=["sequential", "picard", "average"], help="in this order"
    )
    parser.add_argument("--folder", type=path, default=Path("runs/rough"), help="for table and picture")
    return parser


def variant(config: Config, method: str, seed: int) -> Config:
    """The config of one training."""
    how = "sequential" if method == "sequential" else "one_shot"
    update: dict[str, Any] = {"seed": seed, "training": config.training.model_copy(update={"method": how})}
    for section in ("solver", "adjoint"):
        update[section] = getattr(config, section).model_copy(update=METHODS[method])
    return config.model_copy(update=update)


def train(config: Config) -> list[Point]:
    """Train to the end.

    Returns:
        For every exact evaluation: the iteration, seconds of updates so far, exact losses and accuracies, and (of
        inexact gradients, but before the first iteration) cosine and relative distance to the exact gradient.
    """
    data = problems.load(config.problem, config.seed)
    session, points, seconds = Session(config, data), [], 0.0
    session.begin()
    for iteration in range(config.iterations + 1):
        at_end = iteration == config.iterations
        if at_end or iteration % config.evaluation.every == 0:
            exact = session.evaluate(at_end, lambda: 0)
            point: Point = {"iteration": iteration, "seconds": seconds, **{key: exact[key] for key in KEPT}}
            if config.training.method == "one_shot" and iteration > 0:
                measured = session.measure(iteration, config.solver.cycles)
                point |= {"cosine": measured.cosine, "distance": measured.distance}
            points.append(point)
        if not at_end:
            # An update brings its figures to the host, so the clock waits for the device.
            start = time.perf_counter()
            session.update(iteration)
            seconds += time.perf_counter() - start
    return points


def _compare(config: Config, options: argparse.Namespace) -> None:
    """Train by every method for every seed, print the table, write file and picture."""
    build.prepare_jax(config)
    runs: list[dict[str, Any]] = []
    todo = [(seed, method) for seed in options.seeds for method in options.methods]
    with tqdm(todo, leave=False, disable=not sys.stderr.isatty()) as bar:
        for seed, method in bar:
            runs.append({"method": method, "seed": seed, "points": train(variant(config, method, seed))})
            last = runs[-1]["points"][-1]
            if not sys.stderr.isatty():
                print(f"{method}, seed {seed}: {_figures([last])}", flush=True)
            # After every training, so that an interruption loses but the one that runs.
            whole = {"config": config.model_dump(mode="json"), "runs": runs}
            (options.folder / "trainings.json").write_text(json.dumps(whole) + "\n", encoding="utf-8")
    print(f"\nafter {config.iterations} iterations, exactly evaluated; medians of seeds {options.seeds}")
    for method in options.methods:
        last_of_seeds = [run["points"][-1] for run in runs if run["method"] == method]
        print(f"{method:12} {_figures(last_of_seeds)}")
    draw(runs, config, options.folder / "trainings.png")


def _figures(points: list[Point]) -> str:
    """Medians of losses, accuracy and gradient error."""

    def median(key: str) -> float:
        return statistics.median(value for point in points if (value := point.get(key, 0.0)) is not None)

    losses = f"loss {median('exact_train_loss'):.4f} training {median('exact_validation_loss'):.4f} validation"
    accuracy, distance = median("exact_validation_accuracy"), median("distance")
    return f"{losses}, accuracy {accuracy:.2%} validation, gradient error {distance:.2g}"


if __name__ == "__main__":
    terminal.run(main)
