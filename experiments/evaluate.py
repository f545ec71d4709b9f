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
from pathlib import Path
from typing import Any

import jaxmgrit as jm
from experiments import problems
from experiments.config.reader import read_run
from experiments.config.schema import Config
from experiments.errors import AgreedError, ConfigError
from experiments.processes import launch
from experiments.runs.checkpoints import Checkpoints, Refused, binding
from experiments.runs.folder import load_params
from experiments.training import build
from experiments.training.evaluation import evaluator
from experiments.training.loop import Loop

SPLITS = ("train", "validation")
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        given, rest = _parse(sys.argv[1:] if arguments is None else list(arguments))
        words = ["--resume", given.RUN, *rest]
        job, config, folder = launch.start(lambda: read_run(words, "experiments.evaluate"))
        assert folder is not None
        data = problems.load(config.problem, config.seed)
        params, iteration = _params(config, data, folder, given.iteration)
        rows = evaluate(config, data, params, SPLITS if given.split == "all" else (given.split,))
        if job.is_first:
            report = {"iteration": iteration, "splits": rows}
            (folder / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            print(*_table(rows, config, iteration), sep="\n")
    except ConfigError as error:
        if not (isinstance(error, AgreedError) and error.silent):
            print("config error:", *str(error).splitlines(), sep="\n  ", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
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
        epilog="--backend.kind, --backend.devices, ... say where, as in experiments.train.",
        allow_abbrev=False,
    )
    parser.add_argument("RUN", help="folder of a run")
    parser.add_argument("--split", choices=[*SPLITS, "all"], default="all", help="which data; default all")
    parser.add_argument("--iteration", type=int, help="of a checkpoint; default: the final parameters, else the latest")
    parser.error = _refuse  # type: ignore[method-assign,assignment]
    given, rest = parser.parse_known_args(arguments)
    for word in rest:
        if word.startswith("--") and not word.startswith("--backend."):
            raise ConfigError(f"{word.partition('=')[0]}: unknown option here. Besides its own there is --backend.*.")
    return given, rest


def _refuse(message: str) -> None:
    raise ConfigError(f"{message}. See --help for the options.")


def _params(config: Config, data: problems.Data, folder: Path, iteration: int | None) -> tuple[jm.Params, int]:
    """The final parameters, or those of a checkpoint; and their iteration."""
    if iteration is None and (folder / "parameters.npz").exists():
        return load_params(folder / "parameters.npz"), config.iterations
    checkpoints, loop = Checkpoints(folder, 1, binding(config, data)), Loop(config, data)
    if iteration is None:
        checkpoint, refused = checkpoints.latest(loop.like)
    else:
        wanted = [path for path in checkpoints.there() if int(path.name) == iteration]
        if not wanted:
            there = ", ".join(str(int(path.name)) for path in reversed(checkpoints.there())) or "none"
            raise ConfigError(f"--iteration {iteration}: expected that of a checkpoint in {folder}: {there}.")
        try:
            checkpoint, refused = checkpoints.read(wanted[0], loop.like), []
        except Refused as error:
            checkpoint, refused = None, [str(error)]
    if checkpoint is None:
        raise ConfigError("\n".join([*refused, f"{folder}: expected parameters.npz or a checkpoint that can be used."]))
    return checkpoint.snapshot.params, int(checkpoint.snapshot.iteration)


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
    sys.exit(main())
