"""Train a network as a config file says: `python -m experiments.train configs/level_sets.yaml [--key VALUE ...]`.

Or go on with a run that was interrupted: `python -m experiments.train --resume RUN [--backend.devices ...]`; or go on
if there is something to go on with, else begin: `CONFIG --resume auto --output.folder FOLDER [--key VALUE ...]`.

Everything the run leaves is in its folder, see `experiments.runs.folder`. Exit code 0: done; 1: stopped because
training went wrong or nothing more could be written; 2: the config cannot be run; 128 + N: interrupted by signal N,
such as 130 by Ctrl-C and 143 by SIGTERM, with a checkpoint.
"""

import contextlib
import json
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jaxmgrit as jm
from experiments import problems
from experiments.config.reader import read_run
from experiments.config.schema import Config
from experiments.errors import AgreedError, ConfigError, Interrupted, TrainingStopped
from experiments.processes import launch
from experiments.processes.interruption import Interruption
from experiments.runs import terminal
from experiments.runs.binding import Binding
from experiments.runs.checkpoints import Checkpoints
from experiments.runs.folder import Run, read_events, read_metrics
from experiments.runs.parameters import PARAMETERS, save_params
from experiments.runs.progress import Progress, summary_lines
from experiments.runs.recorder import Recorder, go_on
from experiments.runs.resume import Resumed, load, resume
from experiments.runs.sample import write_sample
from experiments.runs.terminal import ERR, OUT
from experiments.training import footprint
from experiments.training.evaluation import predict
from experiments.training.loop import Loop
from experiments.training.records import Listener, Silent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    job, folder = launch.ALONE, None
    try:
        words = sys.argv[1:] if arguments is None else arguments
        job, config, folder = launch.start(lambda: read_run(words, "experiments.train"))
        with launch.all_or_none(job, lambda: remedy(job, folder)) as has_folder:
            data = load(config, folder)
            loop = Loop(config, data)
            resumed = resume(loop, config, data, folder) if folder else None
            # Before there is a folder: options that the library refuses leave none behind.
            loop.start()
            with contextlib.ExitStack() as stack:
                at = resumed.iteration if resumed else None
                record = stack.enter_context(Run(config, data, at)) if job.is_first else None
                # The first process alone makes the folder; the others name it in their messages.
                folder = Path(job.gather(str(record.folder) if record else "")[0])
                has_folder()
                interruption = stack.enter_context(Interruption(loop.trainer.backend))
                if record:
                    run(config, data, job, loop, interruption, record, resumed)
                else:
                    train(loop, Silent(), interruption, resumed)
                    job.gather(footprint.used(loop.state))
    except ConfigError as error:
        if not (isinstance(error, AgreedError) and error.silent):
            ERR.say("config error:", *(f"  {line}" for line in str(error).splitlines()))
        return 2
    except TrainingStopped as error:
        ERR.say(f"stopped: {error}")
        return 1
    except Interrupted as error:
        if job.is_first:
            name = signal.Signals(error.signal).name
            ERR.say(
                f"interrupted by {name} after the end of the training; all but the pictures is in {folder}"
                if error.finished
                else f"interrupted by {name} at iteration {error.iteration}; {go_on(folder, job.count)}"
            )
        return 128 + error.signal
    except KeyboardInterrupt:
        ERR.say(f"interrupted at once; from the last checkpoint, {go_on(folder, job.count)}")
        return 130
    return 0


def remedy(job: launch.Job, folder: Path | None) -> str:
    """What to do after a process was lost."""
    if folder is None:
        return f"Nothing has been trained yet: start all {job.count} again."
    return (
        f"Go on from the last checkpoint: start all {job.count} as before (with the same --backend options), but with "
        f"--resume {shlex.quote(str(folder))} in place of the config."
    )


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
        resumed.checkpoints if resumed else Checkpoints(folder, config.checkpoints.keep, Binding(config, data))
    )
    backend = loop.trainer.backend
    with Progress(config, data, backend.size * backend.data_size, folder) as progress:
        recorder = Recorder(record, progress, checkpoints)
        for remark in record.remarks + (resumed.remarks if resumed else []):
            progress.say(remark)
        if resumed:
            left = "" if resumed.iteration < loop.last else ", the last: it is evaluated again"
            progress.say(f"going on from iteration {resumed.iteration}{left}")
            # Rows behind the checkpoint are of iterations that are done again.
            recorder.cut(resumed.iteration)
            recorder.cut_events(loop.events)
            with recorder.writing():
                record.begin(resumed.iteration < loop.last)
        try:
            params = train(loop, recorder, interruption, resumed)
        except (TrainingStopped, Interrupted) as error:
            # A full disk may be what has ended it: the first error is the one to tell.
            with contextlib.suppress(OSError):
                record.finish(_ending(error))
            raise
    used = [json.loads(text) for text in job.gather(footprint.used(loop.state))]
    assert recorder.last is not None
    first = None if recorder.first is None else recorder.first["seconds"]
    summary = {**recorder.last, "first_iteration_seconds": first, "memory": used}
    with recorder.writing():
        saved = save_params(folder / PARAMETERS, params)
        if data.is_text:
            write_sample(folder, loop.trainer.problem, params, data, config.seed)
        record.finish({"status": "finished", **summary, "parameters": saved})
    try:
        # Parameters and summary are on disk: from here on a signal costs no more than pictures.
        interruption.end_at_once(recorder.last["iteration"])
        if config.output.pictures:
            with recorder.writing():
                if not config.output.quiet:
                    OUT.say("drawing ...")
                _draw(folder, config, data, loop, params)
    except Interrupted as error:
        raise Interrupted(error.signal, error.iteration, finished=True) from None
    OUT.say(*summary_lines(summary, folder))


def train(loop: Loop, listener: Listener, interruption: Interruption, resumed: Resumed | None) -> jm.Params:
    """Train to the end; what resuming changes is a decision like others."""
    if resumed and resumed.change:
        loop.note(resumed.change, listener)
    return loop.run(listener, interruption)


def _draw(folder: Path, config: Config, data: problems.Data, loop: Loop, params: jm.Params) -> None:
    """Draw the pictures, unless the metrics are lost."""
    try:
        rows = read_metrics(folder)
    except ValueError as error:
        OUT.say(f"no pictures: {error}")
        return
    from experiments.runs import pictures  # Matplotlib is slow to import

    judged = pictures.Judged(read_events(folder), config.control.tolerance)
    pictures.draw(folder, rows, data, lambda x: predict(loop.trainer.problem, params, x, config.dtype), judged)


def _ending(error: TrainingStopped | Interrupted) -> dict[str, Any]:
    """The summary of a run that has not come to its end."""
    if isinstance(error, TrainingStopped):
        return {"status": "stopped", "reason": str(error)}
    return {"status": "interrupted", "reason": signal.Signals(error.signal).name, "iteration": error.iteration}


if __name__ == "__main__":
    terminal.run(main)
