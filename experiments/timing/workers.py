"""Processes that time programs, each pinned to cores of its own choice; one of them works at a time.

Cores and the number of CPU devices are fixed when a process first computes, so that one program on one core and another
on two devices need two processes to be timed in turns. A worker may also be several processes, the ranks of an MPI job.
"""

import importlib
import multiprocessing
import os
import secrets
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

SHORTEST = 0.01  # seconds; a program that takes less is run several times in a row


class WorkerError(RuntimeError):
    """What went wrong in a worker."""


@dataclass(frozen=True)
class Place:
    """Where a worker runs.

    Attributes:
        cores: which; None: all, or where the platform is not a CPU.
        devices: JAX's.
        platform: "cpu" or "gpu".
        mpi: whether every device is that of an MPI rank of its own, rather than all of one process.
    """

    cores: tuple[int, ...] | None
    devices: int = 1
    platform: str = "cpu"
    mpi: bool = False

    def __str__(self) -> str:
        return f"{self.devices} MPI ranks" if self.mpi else f"{self.devices} device{'s' * (self.devices > 1)}"


class Worker:
    """A process that keeps objects made from `factory(task)` and answers questions about them.

    Args:
        place: where it runs.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._process: Any
        if place.mpi:
            self._pipes, self._process = _start_ranks(place)
            return
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        self._pipes = [here]
        self._process = context.Process(target=_serve, args=(there, place), daemon=True)
        self._process.start()
        there.close()

    def ask(self, task: Callable[..., Any], *args: Any) -> Any:
        """The result of `task(memory, *args)` over there; `memory` is a dict that lasts as long as the worker.

        Of several ranks, which all do the task, the first one's.

        Raises:
            WorkerError: with the text of the exception over there.
        """
        for pipe in self._pipes:
            pipe.send((task, args))
        try:
            answers = [pipe.recv() for pipe in self._pipes]
        except EOFError:
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
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
            return
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


def _start_ranks(place: Place) -> tuple[list[Connection], "subprocess.Popen[bytes]"]:
    """Ranks with a pipe to each, so that they sleep while they wait for a question, as they would not in MPI."""
    key = secrets.token_bytes(16)
    main = getattr(sys.modules["__main__"], "__spec__", None)
    with Listener(("localhost", 0), authkey=key) as listener:
        command = ["mpirun", "-n", str(place.devices), sys.executable, "-m", "experiments.timing.workers"]
        command += [str(listener.address[1]), key.hex(), main.name if main else __name__]
        # One device a rank, however many this process was told to make of its CPU.
        flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
        own = {**os.environ, "XLA_FLAGS": " ".join(flags)}
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=own)
        except FileNotFoundError:
            raise WorkerError("mpirun is not on the PATH; install MPI support, or leave the MPI ranks out.") from None
        found = {}
        for _ in range(place.devices):
            pipe = listener.accept()
            found[pipe.recv()] = pipe
    pipes = [found[rank] for rank in range(place.devices)]
    for pipe in pipes:
        pipe.send(place)
    return pipes, process


def _serve_rank(port: int, key: bytes, main: str) -> None:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    sys.modules["__main__"] = importlib.import_module(main)  # the tasks' module, under the name it has over there
    pipe = Client(("localhost", port), authkey=key)
    pipe.send(comm.rank)
    place: Place = pipe.recv()
    own = None if place.cores is None else (place.cores[comm.rank],)
    _serve(pipe, replace(place, cores=own, devices=1))


def agreed(value: Any) -> Any:
    """The first rank's value on all ranks of an MPI job, which wait for each other; elsewhere the value itself."""
    if "mpi4py.MPI" not in sys.modules:
        return value
    return sys.modules["mpi4py.MPI"].COMM_WORLD.bcast(value)


def _prepare(place: Place) -> None:
    import jax

    jax.config.update("jax_platforms", "cuda" if place.platform == "gpu" else place.platform)
    if place.platform == "cpu":
        jax.config.update("jax_num_cpu_devices", place.devices)


def _answer(memory: dict[str, Any], task: Callable[..., Any], args: Any) -> tuple[bool, Any]:
    """Whether it failed, and the result or the error's text."""
    try:
        return False, task(memory, *args)
    except Exception:
        return True, traceback.format_exc(limit=-3)


def _serve(pipe: Connection, place: Place) -> None:
    if place.cores is not None:
        os.sched_setaffinity(0, place.cores)
    _prepare(place)
    memory: dict[str, Any] = {}
    while True:
        try:
            question = pipe.recv()
            answer = _answer(memory, *question)
        except (EOFError, KeyboardInterrupt):
            return
        pipe.send(answer)


@dataclass(frozen=True)
class Compiled:
    """What compiling a program told.

    Attributes:
        seconds: it took.
        temporary: bytes that the program needs beside its arguments and results, as the compiler says.
        kept: bytes of arguments and results.
    """

    seconds: float
    temporary: int
    kept: int


@dataclass
class Running:
    """A compiled program of `loop` steps, its state and how often it is run to be timed once."""

    step: Callable[..., Any]
    state: Any
    batch: Any
    loop: int = 1
    times: int = 1

    def run(self, times: int) -> float:
        """Seconds per step."""
        import jax

        start = time.perf_counter()
        for _ in range(times):
            self.state, _ = self.step(self.state, self.batch)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - start) / (times * self.loop)


def compile_program(memory: dict[str, Any], name: str, build: Callable[[], Any], loop: int = 1) -> Compiled:
    """Task: make a program that does `loop` steps in one call, and keep it under a name."""
    import jax

    program = build()

    def steps(state: Any, batch: Any) -> Any:
        if loop == 1:
            return program.step(state, batch)
        return jax.lax.fori_loop(0, loop, lambda _, s: program.step(s, batch)[0], state), None

    jitted = jax.jit(steps, donate_argnums=0)
    lowered = jitted.lower(program.state, program.batch)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    sizes = compiled.memory_analysis()
    # With MPI programs are called with tokens, which only `jit` knows how to pass.
    mpi = "mpi4jax" in sys.modules
    running = Running(jitted if mpi else compiled, program.state, program.batch, loop)
    memory[name] = running, program.gradient
    once = min(running.run(1), running.run(1))
    times = agreed(max(1, round(SHORTEST / (once * loop))))
    memory[name] = replace(running, times=times), program.gradient
    if sizes is None:
        return Compiled(seconds, 0, 0)
    kept = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return Compiled(seconds, sizes.temp_size_in_bytes, kept)


def time_program(memory: dict[str, Any], name: str) -> float:
    """Task: seconds per step."""
    running: Running = memory[name][0]
    agreed(None)  # ranks begin together
    return running.run(running.times)


def gradient_of(memory: dict[str, Any], name: str) -> Any:
    """Task: the gradient as the program last found it, as NumPy arrays."""
    import jax

    running, gradient = memory[name]
    return jax.device_get(gradient(running.state))


def forget(memory: dict[str, Any], name: str) -> None:
    """Task: let go of a program."""
    del memory[name]


def resident_peak(memory: dict[str, Any], name: str) -> int | None:
    """Task: bytes by which the process grew at most during a step; None where the system does not say."""
    running: Running = memory[name][0]
    try:
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    except OSError:
        return None
    running.run(1)
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


if __name__ == "__main__":
    _serve_rank(int(sys.argv[1]), bytes.fromhex(sys.argv[2]), sys.argv[3])
