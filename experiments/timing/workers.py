"""Processes that time programs, each pinned to cores of its own choice; one of them works at a time.

Cores and the number of CPU devices are fixed when a process first computes, so that one program on one core and another
on two devices need two processes to be timed in turns. A worker may also be several processes, the ranks of an MPI job.
"""

import importlib
import multiprocessing
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from experiments.timing import ranks
from experiments.timing.devices import Devices

Memory = dict[str, Any]  # what a worker keeps between its tasks
Task = Callable[..., Any]  # task(memory, *args); it is sent by its name
ENDING = 10.0  # seconds that a process has to end by itself


class WorkerError(RuntimeError):
    """What went wrong in a worker."""


class Worker:
    """A process that does tasks, and keeps what they put into its memory.

    Args:
        devices: Where it runs.

    Raises:
        WorkerError: It cannot be started; the message says why.
    """

    def __init__(self, devices: Devices) -> None:
        self.devices = devices
        self._pipes: list[ranks.Pipe] | list[Connection]
        self._process: Any
        if devices.mpi:
            main = getattr(sys.modules["__main__"], "__spec__", None)
            try:
                self._pipes, self._process = ranks.start(devices, main.name if main else __name__)
            except FileNotFoundError:
                remedy = "install MPI support, or leave the MPI ranks out"
                raise WorkerError(f"mpirun is not on the PATH; {remedy}.") from None
            except OSError as error:
                raise WorkerError(f"{error}; see above, or leave the MPI ranks out.") from None
            return
        # A fork would inherit JAX as it is here, with its devices and the locks of its threads.
        context = multiprocessing.get_context("spawn")
        own, other = context.Pipe()
        self._pipes = [own]
        self._process = context.Process(target=serve, args=(other, devices), daemon=True)
        self._process.start()
        # Or this process would hold that end open itself, and never notice that the worker's has gone.
        other.close()

    def ask(self, task: Task, *args: Any) -> Any:
        """The result of `task(memory, *args)` in the worker; `memory` is a dict that lasts as long as it does.

        Of several ranks, which all do the task, the first one's.

        Raises:
            WorkerError: With the text of the exception there.
        """
        try:
            # Sent to all before one is waited for: ranks need each other to do the task.
            for pipe in self._pipes:
                pipe.send((task, args))
            answers = [pipe.recv() for pipe in self._pipes]
        except (EOFError, ConnectionError):
            raise WorkerError("the process has ended (out of memory?)") from None
        for failed, answer in answers:
            if failed:
                raise WorkerError(answer)
        return answers[0][1]

    def close(self) -> None:
        """End the process."""
        for pipe in self._pipes:
            pipe.close()
        if isinstance(self._process, subprocess.Popen):
            try:
                self._process.wait(ENDING)
            except subprocess.TimeoutExpired:
                ranks.end(self._process)
            return
        self._process.join(ENDING)
        if self._process.is_alive():
            self._process.kill()


def serve(pipe: "Connection | ranks.Pipe", devices: Devices) -> None:
    """Do the tasks that come by a pipe, on some cores and devices, until it ends."""
    if devices.cores is not None:
        # Before JAX starts its threads, which keep the cores that they begin with.
        os.sched_setaffinity(0, devices.cores)
    _prepare_jax(devices)
    memory: Memory = {}
    while True:
        try:
            task, args = pipe.recv()
            answer = _answer(memory, task, args)
        except (EOFError, KeyboardInterrupt):
            return
        pipe.send(answer)


def _prepare_jax(devices: Devices) -> None:
    import jax

    jax.config.update("jax_platforms", "cuda" if devices.platform == "gpu" else devices.platform)
    if devices.platform == "cpu":
        jax.config.update("jax_num_cpu_devices", devices.count)


def _answer(memory: Memory, task: Task, args: Any) -> tuple[bool, Any]:
    """Whether it failed, and the result or the error's text."""
    try:
        return False, task(memory, *args)
    except Exception:
        return True, traceback.format_exc(limit=-3)


def _serve_rank(folder: str, main: str) -> None:
    from mpi4py import MPI

    rank = MPI.COMM_WORLD.rank
    pipe = ranks.connect(folder, rank)
    sys.modules["__main__"] = importlib.import_module(main)  # the tasks' module, under the name it has over there
    devices: Devices = pipe.recv()
    serve(pipe, replace(devices, cores=devices.cores and (devices.cores[rank],), count=1))


if __name__ == "__main__":
    _serve_rank(sys.argv[1], sys.argv[2])
