"""The processes of one training: which one this is, whether all were started alike, and that none goes on alone."""

import contextlib
import difflib
import json
import os
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.config.describe import words
from experiments.config.schema import Backend, Config
from experiments.errors import AgreedError, ConfigError, Interrupted, TrainingStopped
from experiments.processes.watch import Watch
from experiments.training import build

_LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # how many ranks a launcher started: Open MPI, MPICH and its kin
_OWN = ("process",)  # keys of `backend` in which the processes of a run differ
CONNECTING = 60  # seconds that processes wait for each other at the start
ENDING = 600  # and at the end, where the first draws pictures
HEARTBEAT = 20  # seconds after which a process that is silent counts as lost
# What errors of XLA speak of where a connection broke.
_LOST = ("Gloo", "gloo", "NCCL", "onnection", "heartbeat", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED")

Found = tuple[Config, Path | None] | None


@dataclass(frozen=True)
class Job:
    """This process among those of a training.

    Attributes:
        index: 0 is the one that prints and writes.
        count: How many there are.
        noun: What one of them is called.
        gather: From a text to those of all processes, in order; all must call it.
        abort: End this process, and with it the others, at once.
    """

    index: int
    count: int
    noun: str
    gather: Callable[[str], list[str]]
    abort: Callable[[int], NoReturn]

    @property
    def name(self) -> str:
        """Of this process, for messages."""
        return f"{self.noun} {self.index} of {self.count}"

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.index == 0


ALONE = Job(0, 1, "process", lambda text: [text], lambda code: os._exit(code))


def start(read: Callable[[], tuple[Config, Path | None]]) -> tuple[Job, Config, Path | None]:
    """Read the config, prepare JAX (which must not have computed anything yet) and connect the processes.

    Returns:
        The processes, and the config and folder that all of them have read.

    Raises:
        ConfigError: What is wrong with the config or the way the processes were started.
    """
    found: Found = None
    wrong: ConfigError | None = None
    try:
        found = read()
    except ConfigError as error:
        wrong = error
    ranks = ALONE if found and found[0].backend.coordinator not in (None, "mpi4py") else _ranks()
    config, folder = _same_everywhere(ranks, found, wrong)
    build.prepare_jax(config)
    job = _connected(ranks, config.backend)
    if job is not ranks:
        config, folder = _same_everywhere(job, found, wrong)
    return job, config, folder


def _started() -> int:
    """How many ranks of MPI a launcher such as mpirun has started; 1 without one."""
    return max(int(os.environ.get(name, "1")) for name in _LAUNCHED)


def _ranks() -> Job:
    """The ranks of MPI where a launcher started several and mpi4py works, else this process alone."""
    if _started() == 1:
        return ALONE
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):  # what that leads to, `_connected` says
        return ALONE
    comm = MPI.COMM_WORLD

    def abort(code: int) -> NoReturn:
        comm.Abort(code)
        os._exit(code)

    return Job(comm.Get_rank(), comm.Get_size(), "rank", comm.allgather, abort)


def _connected(job: Job, section: Backend) -> Job:
    """All processes of the training, connected by `jax.distributed` where the config asks for that."""
    if section.coordinator is None:
        if job.count == 1 < _started():
            raise ConfigError(
                f"{_started()} MPI ranks were started, but mpi4py is not installed or was built for another MPI. "
                "Install it where mpirun's own mpicc comes first in PATH: pip install --no-cache-dir mpi4py"
            )
        if job.count > 1 and section.kind != "mpi":
            raise AgreedError(
                f"backend.kind = {section.kind!r}: expected 'mpi', as {job.count} ranks were started; each would train "
                "a network of its own. Give --backend.kind mpi, or --backend.coordinator mpi4py for jax.distributed.",
                silent=not job.is_first,
            )
        return job
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    where: dict[str, Any] = {"coordinator_address": section.coordinator}
    where |= {"num_processes": section.processes, "process_id": section.process}
    if section.coordinator in ("detect", "mpi4py"):
        where = {} if section.coordinator == "detect" else {"cluster_detection_method": "mpi4py"}
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=CONNECTING,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=ENDING,
        )
    except (ValueError, RuntimeError, TypeError) as error:
        raise ConfigError(
            f"backend.coordinator = {section.coordinator!r}: the processes were not connected within {CONNECTING} "
            f"seconds ({str(error).splitlines()[0]}). 'detect' knows the jobs of SLURM and Open MPI, 'mpi4py' any MPI; "
            "else give every process the coordinator's HOST:PORT (a free port on the host of process 0), "
            "--backend.processes and its own --backend.process."
        ) from None
    if job.count > 1:
        return job
    return Job(jax.process_index(), jax.process_count(), "process", _gather, lambda code: os._exit(code))


def _gather(text: str) -> list[str]:
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(own.size, np.int32))
    padded = np.zeros(int(np.max(sizes)), np.uint8)
    padded[: own.size] = own
    rows = np.reshape(multihost_utils.process_allgather(padded), (-1, padded.size))
    return [bytes(row[:size]).decode() for row, size in zip(rows, np.reshape(sizes, -1), strict=True)]


def _same_everywhere(job: Job, found: Found, wrong: ConfigError | None) -> tuple[Config, Path | None]:
    """What every process has read, compared.

    Raises:
        AgreedError: What is wrong with it, on all processes; or that it is not the same everywhere.
    """
    if job.count == 1:
        if found is None:
            assert wrong is not None
            raise wrong
        return found
    told = [json.loads(text) for text in job.gather(json.dumps([str(wrong or ""), _comparable(found)]))]
    for index, (error, _) in enumerate(told):
        if error:
            who = "" if all(error == other for other, _ in told) else f"{job.noun} {index} of {job.count}: "
            raise AgreedError(who + error, silent=not job.is_first)
    for index, (_, text) in enumerate(told):
        if text != told[0][1]:
            lines = difflib.unified_diff(told[0][1].splitlines(), text.splitlines(), lineterm="", n=0)
            changes = [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]
            raise AgreedError(
                f"{job.noun} {index} has another config than {job.noun} 0: expected the same everywhere, found\n"
                + "\n".join(changes[:20])
                + f"\n(- {job.noun} 0, + {job.noun} {index}). Give every one the same file and options.",
                silent=not job.is_first,
            )
    assert found is not None
    return found


def _comparable(found: Found) -> str:
    """Config and folder as `section.key: value` lines, without what may differ; and the versions to run with."""
    if found is None:
        return ""
    config, folder = found
    values = {"jax": jax.__version__, "resume": folder and str(folder), **config.model_dump()}
    values["backend"] = {key: value for key, value in values["backend"].items() if key not in _OWN}
    return "\n".join(_lines(values, ""))


def _lines(values: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}: {words(value)}"


@contextlib.contextmanager
def all_or_none(job: Job, remedy: Callable[[], str]) -> Iterator[Callable[[], None]]:
    """Whatever stops one process of several stops all of them, with a message, rather than leave them waiting.

    Args:
        job: The processes.
        remedy: What to tell the user besides what happened.

    Yields:
        What to call when `remedy` has something else to say.
    """
    if job.count == 1:
        yield lambda: None
        return
    own = secrets.token_hex(8)
    # A launcher of ranks ends the others, and only the first that was lost shall be named.
    with Watch(job.gather(own)[0] if job.noun == "rank" else own, job.name) as watch:
        watch.remedy(remedy())
        try:
            yield lambda: watch.remedy(remedy())
        except (AgreedError, Interrupted, SystemExit):
            raise
        except BaseException as error:
            if not job.is_first:
                time.sleep(1.0)  # where all stop for the same reason, the first speaks for them
            _explain(job, error, remedy())
            watch.close()
            job.abort({KeyboardInterrupt: 130, ConfigError: 2}.get(type(error), 1))


def _explain(job: Job, error: BaseException, remedy: str) -> None:
    """Print what stopped a process."""
    text = f"{type(error).__name__}: {str(error).splitlines()[0]}." if str(error) else f"{type(error).__name__}."
    if isinstance(error, ConfigError):
        print(f"{job.name}: config error:", *str(error).splitlines(), sep="\n  ", file=sys.stderr)
        remedy = ""
    elif isinstance(error, TrainingStopped):
        print(f"{job.name} stopped: {error}", file=sys.stderr)
        remedy = ""
    elif isinstance(error, (jax.errors.JaxRuntimeError, ValueError)) and any(word in str(error) for word in _LOST):
        print(f"{job.name} stopped: it lost contact with another one, which was killed or stopped.", file=sys.stderr)
        print(f"({text})", file=sys.stderr)
    else:
        if not isinstance(error, KeyboardInterrupt):
            traceback.print_exc()
        print(f"{job.name} stopped: {text}", file=sys.stderr)
    print(remedy, file=sys.stderr, flush=True)
