"""Evaluate a trained network: `python -m experiments.evaluate RUN [--split ...] [--iteration N] [--backend.* ...]`.

Exactly, layer after layer, and inexactly, by the cycles of the run's solver from a cold start; on any number of
devices, started like a training on as many. Prints a table and writes it to RUN/evaluation.json. Exit code 0: done;
2: it cannot be done.
"""

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from typing import Any

import jaxmgrit as jm
from experiments import problems
from experiments.config.arguments import at_least
from experiments.config.describe import flag
from experiments.config.reader import PLACES, read_run
from experiments.config.schema import Config
from experiments.errors import AgreedError, ConfigError
from experiments.processes import launch
from experiments.runs import terminal
from experiments.runs.files import write_whole
from experiments.runs.newest import load_trained
from experiments.runs.resume import load
from experiments.runs.terminal import ERR, OUT
from experiments.training import build
from experiments.training.evaluation import evaluator

SPLITS = ("train", "validation")
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        given, rest = _parse(sys.argv[1:] if arguments is None else list(arguments))
        words = ["--resume", given.RUN, *rest]
        job, config, folder = launch.start(lambda: read_run(words, "experiments.evaluate"))
        assert folder is not None
        data = load(config, folder)
        params, iteration, network, remarks = load_trained(config, data, folder, given.iteration)
        rows = evaluate(network, data, params, SPLITS if given.split == "all" else (given.split,))
        if job.is_first:
            OUT.say(*_table(rows, network, iteration), *(f"not used: {remark}" for remark in remarks))
            report = {"iteration": iteration, "splits": rows}
            write_whole(folder / "evaluation.json", (json.dumps(report, indent=2) + "\n").encode())
    except ConfigError as error:
        if not (isinstance(error, AgreedError) and error.silent):
            ERR.say("config error:", *(f"  {line}" for line in str(error).splitlines()))
        return 2
    except OSError as error:
        ERR.say(f"{error.filename}: {error.strerror}")
        return 2
    return 0


def evaluate(config: Config, data: problems.Data, params: jm.Params, splits: Sequence[str]) -> list[Row]:
    """Loss and accuracy of a network on data sets, exact and inexact; one row per data set."""
    problem, backend = build.problem(config), build.backend(config.backend).undivided()
    solvers: dict[str, jm.MGRIT | jm.Sequential] = {"exact": jm.Sequential()}
    if config.training.method == "one_shot":
        solvers["inexact"] = build.solver(config.solver)
    rows = []
    for split in splits:
        part = getattr(data, split)
        row: Row = {"split": split, "points": len(part.y)}
        for name, solver in solvers.items():
            how = functools.partial(problem.evaluate, solver=solver, backend=backend)
            loss, accuracy = evaluator(problem, how, part, config.dtype)(params)
            row |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
        rows.append(row)
    return rows


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        "python -m experiments.evaluate",
        description="Evaluate a run's network exactly, and inexactly by its solver's cycles from a cold start.",
        epilog="--backend.kind, --backend.devices, ... say where, as in experiments.train; --problem.folder, where the "
        "data are, if they have moved.",
        allow_abbrev=False,
    )
    parser.add_argument("RUN", help="folder of a run")
    parser.add_argument("--split", choices=[*SPLITS, "all"], default="all", help="which data; default all")
    parser.add_argument("--iteration", type=at_least(0), help="of the parameters; default: the latest that there are")
    # Argparse would exit by itself, and not as other faults of the command line are told.
    parser.error = _refuse  # type: ignore[method-assign,assignment]
    given, rest = parser.parse_known_args(arguments)
    for word in rest:
        name = word.partition("=")[0]
        if name.startswith("--") and not name.startswith("--backend.") and name not in map(flag, PLACES):
            others = ", ".join(["--backend.*", *map(flag, PLACES)])
            raise ConfigError(f"{name}: unknown option here. Besides its own there are {others}.")
    return given, rest


def _refuse(message: str) -> None:
    raise ConfigError(f"{message}. See --help for the options.")


def _table(rows: list[Row], config: Config, iteration: int) -> list[str]:
    """The rows as a table."""
    lines = [f"parameters after {iteration} iterations, {config.network.layers} layers; {config.backend.kind}", ""]
    lines.append(
        f"{'split':>10}  {'points':>7}  {'exact loss':>10}  {'exact acc.':>10}  {'inexact loss':>12}  inexact acc."
    )
    for row in rows:
        line = f"{row['split']:>10}  {row['points']:7d}  {row['exact_loss']:10.5g}  {row['exact_accuracy']:10.2%}"
        if "inexact_loss" in row:
            line += f"  {row['inexact_loss']:12.5g}  {row['inexact_accuracy']:12.2%}"
        lines.append(line)
    return lines


if __name__ == "__main__":
    terminal.run(main)
