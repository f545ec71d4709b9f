"""Processes that time programs, each pinned to cores of its own choice; one of them works at a time.

Cores and the number of CPU devices are fixed when a process first computes, so that one program on one core and another
on two devices need two processes to be timed in turns.
"""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
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
    """

    cores: tuple[int, ...] | None
    devices: int = 1
    platform: str = "cpu"

    def __str__(self) -> str:
        cores = "all cores" if self.cores is None else f"{len(self.cores)} core{'s' * (len(self.cores) > 1)}"
        return f"{self.devices} device{'s' * (self.devices > 1)}" + (f", {cores}" if self.platform == "cpu" else "")


class Worker:
    """A process that keeps objects made from `factory(task)` and answers questions about them.

    Args:
        place: where it runs.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, place), daemon=True)
        self._process.start()
        there.close()

    def ask(self, task: Callable[..., Any], *args: Any) -> Any:
        """The result of `task(memory, *args)` over there; `memory` is a dict that lasts as long as the worker.

        Raises:
            WorkerError: with the text of the exception over there.
        """
        self._pipe.send((task, args))
        try:
            failed, answer = self._pipe.recv()
        except EOFError:
            raise WorkerError("the process has ended (out of memory?)") from None
        if failed:
            raise WorkerError(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: Connection, place: Place) -> None:
    if place.cores is not None:
        os.sched_setaffinity(0, place.cores)
    import jax

    jax.config.update("jax_platforms", "cuda" if place.platform == "gpu" else place.platform)
    if place.platform == "cpu":
        jax.config.update("jax_num_cpu_devices", place.devices)
    memory: dict[str, Any] = {}
    while True:
        try:
            task, args = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            answer = False, task(memory, *args)
        except KeyboardInterrupt:
            return
        except Exception:
            answer = True, traceback.format_exc(limit=-3)
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
    """A compiled program, its state and how often it is run to be timed once."""

    step: Callable[..., Any]
    state: Any
    batch: Any
    times: int = 1

    def run(self, times: int) -> float:
        """Seconds per step."""
        import jax

        start = time.perf_counter()
        for _ in range(times):
            self.state, _ = self.step(self.state, self.batch)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - start) / times


def compile_program(memory: dict[str, Any], name: str, build: Callable[[], Any]) -> Compiled:
    """Task: make a program and keep it under a name."""
    import jax

    program = build()
    lowered = jax.jit(program.step, donate_argnums=0).lower(program.state, program.batch)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    sizes = compiled.memory_analysis()
    running = Running(compiled, program.state, program.batch)
    memory[name] = running, program.gradient
    once = min(running.run(1), running.run(1))
    memory[name] = replace(running, times=max(1, round(SHORTEST / once))), program.gradient
    if sizes is None:
        return Compiled(seconds, 0, 0)
    kept = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return Compiled(seconds, sizes.temp_size_in_bytes, kept)


def time_program(memory: dict[str, Any], name: str) -> float:
    """Task: seconds per step."""
    running: Running = memory[name][0]
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
