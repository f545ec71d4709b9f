"""Going on with a run: from which of its checkpoints, and what that changes."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import problems
from experiments.config.reader import read
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.problems import Data
from experiments.runs.binding import Binding
from experiments.runs.checkpoints import Checkpoints
from experiments.runs.parameters import PARAMETERS
from experiments.training import build
from experiments.training.loop import Loop
from experiments.training.nested import most_iterations
from experiments.training.records import Row


def load(config: Config, resumed: Path | None) -> Data:
    """The data of a config.

    Args:
        config: The config.
        resumed: The folder of the run to go on with, None for a new one.

    Raises:
        ConfigError: They cannot be had; of a run to go on with, they may have moved, and the message says so.
    """
    try:
        data = problems.load(config.problem, config.seed)
        _check_size(config, data)
        return data
    except ConfigError as error:
        place = next((key for key in ("folder", "file") if key in type(config.problem).model_fields), None)
        if resumed is None or place is None:
            raise
        raise ConfigError(f"{error}\nIf the data have moved since, name their new place: --problem.{place}.") from None


def _check_size(config: Config, data: Data) -> None:
    """Raise a ConfigError where numbers are too large for the training's precision, and would become infinite."""
    if config.dtype == "float32":
        arrays = [array for part in (data.train, data.validation) for array in part if array.dtype.kind == "f"]
        size = max((np.abs(array).max() for array in arrays), default=0.0)
        if size > np.finfo(np.float32).max:
            raise ConfigError(
                f"dtype = 'float32': expected data of at most 3.4e38, found a number of size {size:.3g}. Scale the "
                "data (problem.standardise true does where there is that key), or give --dtype float64."
            )


class Resumed(NamedTuple):
    """A run to go on with.

    Attributes:
        checkpoints: Its checkpoints.
        iteration: To start from.
        remarks: Why later checkpoints are not used.
        change: What other options than before change, as a decision; None: nothing that is not plain.
    """

    checkpoints: Checkpoints
    iteration: int
    remarks: list[str]
    change: Row | None = None


def resume(loop: Loop, config: Config, data: Data, folder: Path) -> Resumed:
    """Set a loop to the latest checkpoint of a run; to its beginning where the run ended before there was any.

    Raises:
        ConfigError: None of the checkpoints can be used; or the run is longer than the config asks for.
    """
    checkpoints = Checkpoints(folder, config.checkpoints.keep, Binding(config, data))
    checkpoint, refused = checkpoints.latest(loop.like)
    remarks = [f"not used: {reason}" for reason in refused]
    if checkpoint is None:
        if refused:
            raise ConfigError("\n".join([*refused, f"--resume {folder}: expected a checkpoint that can be used."]))
        _refuse_to_begin_again(folder)
        return Resumed(checkpoints, 0, ["no checkpoint: it begins again"])
    iteration = checkpoint.iteration
    if iteration > most_iterations(config):
        raise ConfigError(
            f"iterations = {config.iterations}: expected at least {iteration}, which the run in {folder} has done."
        )
    loop.resume(checkpoint)
    return Resumed(checkpoints, iteration, remarks, _rate_change(config, folder, iteration))


def _refuse_to_begin_again(folder: Path) -> None:
    """Raise a ConfigError where a run without checkpoints has been trained to its end: its parameters are all of it.

    Rows alone may be those of a run that was killed before its first checkpoint was whole; they will be the same again.
    """
    if (folder / PARAMETERS).exists():
        raise ConfigError(
            f"--resume {folder}: expected its checkpoints, as it has been trained, but there are none in "
            f"{folder / 'checkpoints'}. Put them back; or begin a new run in another folder."
        )


def _rate_change(config: Config, folder: Path, iteration: int) -> Row | None:
    """What another number of iterations changes about the learning rate.

    A cosine schedule ends at the last iteration, so it is stretched or shortened, and the rate jumps. (Going on behind
    its old end would mean to train at a rate of zero.)

    Args:
        config: From now on.
        folder: Of the run, whose config.yaml still says what it was before.
        iteration: From which training goes on.
    """
    section = config.optimizer
    if section.name == "published" or section.schedule != "cosine":
        return None
    try:
        before = read([str(folder / "config.yaml")], "experiments.train")
    except ConfigError:  # it is not complete without the options that are given now
        return None
    if before.iterations == config.iterations:
        return None
    done = max(0, iteration - (most_iterations(config) - config.iterations))  # of the deepest network
    was, now = (float(build.learning_rate(one)(done)) for one in (before, config))
    return {
        "iteration": iteration,
        "action": f"iterations {before.iterations} -> {config.iterations}",
        "reason": f"the cosine schedule ends there now: the learning rate goes from {was:.3g} to {now:.3g} here",
    }
