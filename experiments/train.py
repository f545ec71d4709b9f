"""Train a network as a config file says: `python -m experiments.train configs/level_sets.yaml [--key VALUE ...]`.

Everything the run leaves is in a new folder, see `experiments.runs`. Exit code 0: done; 1: stopped because training
went wrong; 2: the config cannot be run; 130: interrupted.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

import jaxmgrit as jm
from experiments import build, pictures, problems
from experiments.batches import Batches
from experiments.config import read
from experiments.errors import ConfigError, TrainingStopped
from experiments.evaluation import evaluator, predict
from experiments.progress import Progress, summary_lines
from experiments.runs import Run, save_params
from experiments.schema import Config

GROWTH = 1e3  # of the loss over its first value (or over 1): no training comes back from there
PATIENCE = 20  # iterations in a row in which the solver may diverge; a few do no harm

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        config = read(sys.argv[1:] if arguments is None else arguments, "experiments.train")
        build.prepare_jax(config)
        data = problems.load(config.problem, config.seed)
        trainer = build.trainer(config)
        batches = Batches(config, data)
        state = build.initial_state(config, data, trainer, batches)
        if build.is_first_process(config.backend):
            run(config, data, batches, trainer, state)
        else:
            train(config, data, batches, trainer, state, report=lambda row: None)
    except ConfigError as error:
        print("config error:", *str(error).splitlines(), sep="\n  ", file=sys.stderr)
        return 2
    except TrainingStopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the metrics so far are in the run's folder", file=sys.stderr)
        return 130
    return 0


def run(config: Config, data: problems.Data, batches: Batches, trainer: jm.OneShot, state: jm.TrainState) -> None:
    """Train, show how it goes, and leave a folder: what the first process does. The others only train."""
    with Run(config, data) as record, Progress(config, data, trainer.backend.size, record.folder) as progress:

        def report(row: Row) -> None:
            record.row(row)
            progress.show(row)

        try:
            rows, params = train(config, data, batches, trainer, state, report)
        except TrainingStopped as error:
            record.finish({"status": "stopped", "reason": str(error)})
            raise
    save_params(record.folder / "parameters.npz", params)
    summary = {**rows[-1], "first_iteration_seconds": rows[0]["seconds"]}
    record.finish({"status": "finished", **summary})
    if config.output.pictures:
        pictures.draw(record.folder, rows, data, lambda x: predict(trainer.problem, params, x, config.dtype))
    print(*summary_lines(summary, record.folder), sep="\n")


def train(
    config: Config,
    data: problems.Data,
    batches: Batches,
    trainer: jm.OneShot,
    state: jm.TrainState,
    report: Callable[[Row], None],
) -> tuple[list[Row], jm.Params]:
    """The training loop; it uses up the state.

    Row i of the metrics is about the parameters after i updates: what the iteration that starts from them sees
    (inexact) and, every now and then, their exact evaluation. Only the iterations are on the clock.

    Returns:
        The metrics, rows 0 to `config.iterations`, and the final parameters as NumPy arrays.

    Raises:
        TrainingStopped: The solver diverged, or a loss or gradient is not finite.
    """
    most = config.evaluation.points
    exact, final = (
        {
            name: evaluator(trainer.problem, part, config.dtype, points)
            for name, part in (("train", data.train), ("validation", data.validation))
        }
        for points in (most, None)
    )
    update = build.update(trainer, batches)
    rows: list[Row] = []
    seconds = 0.0
    for iteration in range(config.iterations + 1):
        last = iteration == config.iterations
        evaluation: Row = {}
        if last or iteration % config.evaluation.every == 0:
            params = trainer.params(state)
            for name, evaluate in (final if last else exact).items():
                loss, accuracy = evaluate(params)
                evaluation |= {f"exact_{name}_loss": loss, f"exact_{name}_accuracy": accuracy}
        start = time.perf_counter()
        # The last time only to see what training sees of the final parameters.
        state, info = update(state, batches.at(iteration))
        info = jax.device_get(info)
        seconds += 0.0 if last else time.perf_counter() - start
        rows.append({"iteration": iteration, **_figures(info), **evaluation, "seconds": seconds})
        report(rows[-1])
        _check(rows)
    return rows, jax.device_get(params)


def _figures(info: Any) -> Row:
    """An iteration's info as a row of metrics."""
    return {
        "inexact_loss": float(info.loss),
        "inexact_accuracy": float(info.aux["accuracy"]),
        "objective": float(info.objective),
        "grad_norm": float(info.grad_norm),
        "residual_norm": float(info.residual_norm),
        "adjoint_residual_norm": float(info.adjoint_residual_norm),
        "result": int(info.result),
    }


def _check(rows: list[Row]) -> None:
    """Stop a training that cannot go on: not finite, a loss out of all bounds, a solver that diverges all the time.

    Raises:
        TrainingStopped: With a sentence about what happened.
    """
    row = rows[-1]
    wild = [key for key in ("inexact_loss", "objective", "grad_norm") if not math.isfinite(row[key])]
    result = jm.Result(row["result"])
    if not wild and row["inexact_loss"] > GROWTH * max(1.0, rows[0]["inexact_loss"]):
        wild = ["inexact_loss"]
    if wild or result == jm.Result.NOT_FINITE:
        what = f"{wild[0]} = {row[wild[0]]:.3g}" if wild else "the solver's states or adjoints are not finite"
        raise TrainingStopped(
            f"iteration {row['iteration']}: {what}. Lower optimizer.learning_rate or network.scale, or raise "
            "solver.cycles; --training.method sequential tells whether the network itself overflows."
        )
    if len(rows) >= PATIENCE and all(jm.Result(past["result"]) == jm.Result.DIVERGED for past in rows[-PATIENCE:]):
        raise TrainingStopped(f"iteration {row['iteration']}, and {PATIENCE - 1} before it: {result.sentence}")


if __name__ == "__main__":
    sys.exit(main())
