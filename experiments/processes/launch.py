"""The start of a training's processes: which one this is, and whether all were started alike."""

import difflib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from experiments.config.describe import words
from experiments.config.schema import Config
from experiments.errors import AgreedError, ConfigError
from experiments.processes import connection
from experiments.processes.job import ALONE, Job
from experiments.processes.together import all_or_none
from experiments.training import build

__all__ = ["ALONE", "Job", "all_or_none", "start"]

_OWN = ("process",)  # keys of `backend` in which the processes of a run differ

Read = tuple[Config, Path | None]  # a config, and the folder of the run to go on with


def start(read: Callable[[], Read]) -> tuple[Job, Config, Path | None]:
    """Read the config, prepare JAX (which must not have computed anything yet) and connect the processes.

    Returns:
        The processes, and the config and folder that all of them have read.

    Raises:
        ConfigError: What is wrong with the config or the way the processes were started.
    """
    own: Read | None = None
    wrong: ConfigError | None = None
    try:
        own = read()
    except ConfigError as error:
        # Not raised yet: the other ranks wait in the gather below, and must hear of it.
        wrong = error
    if own and own[0].backend.coordinator not in (None, "mpi4py"):
        # These processes meet by jax.distributed: MPI is left alone, even where it has started them.
        ranks = ALONE
    else:
        backend = own and own[0].backend
        ranks = connection.ranks(asked=bool(backend and (backend.kind == "mpi" or backend.coordinator == "mpi4py")))
    config, folder = _same_everywhere(ranks, own, wrong)
    # Before connecting: the first exchange of arrays fixes the devices.
    build.prepare_jax(config)
    job = connection.connect(ranks, config.backend)
    build.check_devices()
    # Another gather connects processes that could not compare what they have read before.
    if job.gather is not ranks.gather:
        config, folder = _same_everywhere(job, own, wrong)
    return job, config, folder


def _same_everywhere(job: Job, own: Read | None, wrong: ConfigError | None) -> Read:
    """What every process has read, compared.

    Raises:
        AgreedError: What is wrong with it, on all processes; or that it is not the same everywhere.
    """
    if job.count == 1:
        if own is None:
            assert wrong is not None
            raise wrong
        return own
    everywhere = [json.loads(text) for text in job.gather(json.dumps([str(wrong or ""), _comparable(own)]))]
    for index, (error, _) in enumerate(everywhere):
        if error:
            who = "" if all(error == other for other, _ in everywhere) else f"{job.noun} {index} of {job.count}: "
            raise AgreedError(who + error, silent=not job.is_first)
    for index, (_, text) in enumerate(everywhere):
        if text != everywhere[0][1]:
            lines = difflib.unified_diff(everywhere[0][1].splitlines(), text.splitlines(), lineterm="", n=0)
            changes = [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]
            raise AgreedError(
                f"{job.noun} {index} has another config than {job.noun} 0: expected the same everywhere, found\n"
                + "\n".join(changes[:20])
                + f"\n(- {job.noun} 0, + {job.noun} {index}). Give every one the same file and options.",
                silent=not job.is_first,
            )
    assert own is not None
    return own


def _comparable(own: Read | None) -> str:
    """Config and folder as `section.key: value` lines, without what may differ; and the versions to run with."""
    if own is None:
        return ""
    config, folder = own
    values = {"jax": jax.__version__, "resume": folder and str(folder), **config.model_dump()}
    values["backend"] = {key: value for key, value in values["backend"].items() if key not in _OWN}
    return "\n".join(_lines(values, ""))


def _lines(values: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}: {words(value)}"
