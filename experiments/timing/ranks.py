"""Workers that are MPI jobs: their ranks are reached by named pipes in a folder that only this user may enter.

Whoever can write to a rank's pipe makes it run what it reads, as with any process of `multiprocessing`. The pipes
therefore lie in a new folder of mode 0700, nothing listens on a network, and command lines, which all users of a
machine can read, hold no secret. Once both ends of a pipe are open its name is removed.
"""

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.timing.devices import Devices

ENDING = 10.0  # seconds that mpirun has to end its ranks
STARTING = 120.0  # seconds that ranks have to start
POLL = 0.05  # seconds between two looks whether they have


class Pipe:
    """Both directions between this process and another."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader = Connection(reader, writable=False)
        self._writer = Connection(writer, readable=False)
        self.send, self.recv = self._writer.send, self._reader.recv

    def close(self) -> None:
        """Close both directions."""
        self._reader.close()
        self._writer.close()


def start(devices: Devices, main: str) -> "tuple[list[Pipe], subprocess.Popen[bytes]]":
    """Start the ranks, with a pipe to each, so that they sleep while they wait as they would not in MPI.

    Args:
        devices: One a rank.
        main: The module that is `__main__` in this process, under whose name tasks are sent.

    Raises:
        OSError: There is no mpirun, or the ranks do not start; the message says which.
    """
    # One device a rank, however many this process was told to make of its CPU.
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
    with tempfile.TemporaryDirectory(prefix="jaxmgrit-ranks-") as folder, contextlib.ExitStack() as undo:
        names = [(Path(folder) / f"{rank}-answers", Path(folder) / f"{rank}-tasks") for rank in range(devices.count)]
        for pair in names:
            for name in pair:
                os.mkfifo(name, 0o600)
        # Opening would else wait for ranks that are started only below.
        readers = [os.open(answers, os.O_RDONLY | os.O_NONBLOCK) for answers, _ in names]
        for reader in readers:
            undo.callback(os.close, reader)
        command = ["mpirun", "-n", str(devices.count), sys.executable, "-m", "experiments.timing.workers", folder, main]
        environment = {**os.environ, "XLA_FLAGS": " ".join(flags)}
        # Else mpirun would read this terminal's input, for its first rank.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
        undo.callback(end, process)
        limit = time.monotonic() + STARTING
        writers = []
        for _, tasks in names:
            writers.append(_open_writer(tasks, process, limit))
            undo.callback(os.close, writers[-1])
        for descriptor in (*readers, *writers):
            # From here on `Connection` expects reads that wait.
            os.set_blocking(descriptor, True)
        undo.pop_all()
        pipes = [Pipe(reader, writer) for reader, writer in zip(readers, writers, strict=True)]
    for pipe in pipes:
        pipe.send(devices)
    return pipes, process


def _open_writer(name: Path, process: "subprocess.Popen[bytes]", limit: float) -> int:
    """The end of a pipe that is written to, as soon as the rank has opened the other."""
    while True:
        try:
            return os.open(name, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads it yet
                raise
        if process.poll() is not None:
            raise OSError(f"mpirun ended with code {process.returncode} before its ranks had started")
        if time.monotonic() > limit:
            raise OSError(f"the ranks have not started within {STARTING:.0f} seconds")
        time.sleep(POLL)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End an mpirun, and with it its ranks."""
    process.terminate()
    try:
        process.wait(ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def connect(folder: str, rank: int) -> Pipe:
    """A rank's pipe to the process that has started it."""
    # The folder goes as soon as somebody reads the tasks of every rank.
    writer = os.open(f"{folder}/{rank}-answers", os.O_WRONLY)
    return Pipe(os.open(f"{folder}/{rank}-tasks", os.O_RDONLY), writer)


def agreed(value: Any) -> Any:
    """The first process's number on all ranks or processes of a job, which wait for each other; else the number."""
    # Looked up, not imported: to import it would initialise MPI.
    if "mpi4py.MPI" in sys.modules:
        return sys.modules["mpi4py.MPI"].COMM_WORLD.bcast(value)
    if jax.process_count() > 1:
        first = multihost_utils.broadcast_one_to_all(np.asarray(0 if value is None else value))
        return None if value is None else type(value)(first)
    return value
