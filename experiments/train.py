"""Train a network as a config file says: `python -m experiments.train configs/level_sets.yaml [--key VALUE ...]`.

Or go on with a run that was interrupted: `python -m experiments.train --resume RUN [--backend.devices ...]`. Everything
the run leaves is in its folder, see `experiments.runs.folder`. Exit code 0: done; 1: stopped because training went
wrong or nothing more could be written; 2: the config cannot be run; 130 and 143: interrupted by Ctrl-C or SIGTERM.
"""

import contextlib
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments import problems
from experiments.config.reader import read_run
from experiments.config.schema import Config
from experiments.errors import AgreedError, ConfigError, Interrupted, TrainingStopped
from experiments.processes import launch
from experiments.processes.interruption import Interruption
from experiments.runs.checkpoints import Checkpoints, binding
from experiments.runs.folder import Run, read_metrics, save_params
from experiments.runs.progress import Progress, summary_lines
from experiments.runs.recorder import Recorder, Silent, go_on
from experiments.training import memory
from experiments.training.evaluation import predict
from experiments.training.loop import Loop
from experiments.training.nested import most_iterations


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    job, folder = launch.ALONE, None
    try:
        words = sys.argv[1:] if arguments is None else arguments
        job, config, folder = launch.start(lambda: read_run(words, "experiments.train"))
        with launch.all_or_none(job, lambda: remedy(job, folder)) as has_folder:
            data = problems.load(config.problem, config.seed)
            loop = Loop(config, data)
            resumed = resume(loop, config, data, folder) if folder else None
            with contextlib.ExitStack() as stack:
                record = stack.enter_context(Run(config, data, folder is not None)) if job.is_first else None
                folder = Path(job.gather(str(record.folder) if record else "")[0])
                has_folder()
                interruption = stack.enter_context(Interruption(loop.trainer.backend))
                if record:
                    run(config, data, job, loop, interruption, record, resumed)
                else:
                    loop.run(Silent(), interruption)
                    job.gather(memory.used(loop.state))
    except ConfigError as error:
        if not (isinstance(error, AgreedError) and error.silent):
            print("config error:", *str(error).splitlines(), sep="\n  ", file=sys.stderr)
        return 2
    except TrainingStopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except Interrupted as error:
        if job.is_first:
            name = signal.Signals(error.signal).name
            print(f"interrupted by {name} at iteration {error.iteration}; {go_on(folder)}", file=sys.stderr)
        return 128 + error.signal
    except KeyboardInterrupt:
        print(f"interrupted at once; from the last checkpoint, {go_on(folder)}", file=sys.stderr)
        return 130
    return 0


def remedy(job: launch.Job, folder: Path | None) -> str:
    """What to do after a process was lost."""
    if folder is None:
        return f"Nothing has been trained yet: start all {job.count} again."
    return (
        f"Go on from the last checkpoint: start all {job.count} as before (with the same --backend options), but with "
        f"--resume {folder} in place of the config."
    )


class Resumed(NamedTuple):
    """A run to go on with: its checkpoints, the iteration to start from, and why later ones are not used."""

    checkpoints: Checkpoints
    iteration: int
    refused: list[str]


def resume(loop: Loop, config: Config, data: problems.Data, folder: Path) -> Resumed:
    """Set a loop to the latest checkpoint of a run; to its beginning where the run ended before there was any.

    Raises:
        ConfigError: None of the checkpoints can be used; or the run is longer than the config asks for.
    """
    checkpoints = Checkpoints(folder, config.checkpoints.keep, binding(config, data))
    checkpoint, refused = checkpoints.latest(loop.like)
    if checkpoint is None:
        if refused:
            raise ConfigError("\n".join([*refused, f"--resume {folder}: expected a checkpoint that can be used."]))
        return Resumed(checkpoints, 0, refused)
    iteration = int(checkpoint.snapshot.iteration)
    if iteration > most_iterations(config):
        raise ConfigError(
            f"iterations = {config.iterations}: expected at least {iteration}, which the run in {folder} has done."
        )
    loop.resume(checkpoint)
    return Resumed(checkpoints, iteration, refused)


def run(
    config: Config,
    data: problems.Data,
    job: launch.Job,
    loop: Loop,
    interruption: Interruption,
    record: Run,
    resumed: Resumed | None,
) -> None:
    """Train, show how it goes, and leave a folder: what the first process does. The others only train."""
    folder = record.folder
    checkpoints = (
        resumed.checkpoints if resumed else Checkpoints(folder, config.checkpoints.keep, binding(config, data))
    )
    backend = loop.trainer.backend
    with Progress(config, data, backend.size * backend.data_size, folder) as progress:
        recorder = Recorder(record, progress, checkpoints)
        if resumed:
            for reason in resumed.refused:
                progress.say(f"not used: {reason}")
            progress.say(f"going on from iteration {resumed.iteration}")
            recorder.cut(resumed.iteration, loop.events)
        try:
            params = loop.run(recorder, interruption)
        except TrainingStopped as error:
            with contextlib.suppress(OSError):
                record.finish({"status": "stopped", "reason": str(error)})
            raise
    rows = read_metrics(folder)
    used = [json.loads(text) for text in job.gather(memory.used(loop.state))]
    summary = {**rows[-1], "first_iteration_seconds": rows[0]["seconds"], "memory": used}
    with recorder.writing():
        save_params(folder / "parameters.npz", params)
        record.finish({"status": "finished", **summary})
        if config.output.pictures:
            from experiments.runs import pictures  # Matplotlib is slow to import

            pictures.draw(folder, rows, data, lambda x: predict(loop.trainer.problem, params, x, config.dtype))
    print(*summary_lines(summary, folder), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
