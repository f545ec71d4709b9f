"""Tasks of workers: programs compiled, timed and asked for their gradients and memory."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from experiments.timing.ranks import agreed

SHORTEST = 0.01  # seconds; a program that takes less is run several times in a row


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
        start = time.perf_counter()
        for _ in range(times):
            self.state, _ = self.step(self.state, self.batch)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - start) / (times * self.loop)


def compile_program(memory: dict[str, Any], name: str, build: Callable[[], Any], loop: int = 1) -> Compiled:
    """Task: make a program that does `loop` steps in one call, and keep it under a name."""
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
    # The better of two: the first run may still be getting ready.
    once = min(running.run(1), running.run(1))
    times = agreed(max(1, round(SHORTEST / (once * loop))))
    memory[name] = replace(running, times=times), program.gradient
    if sizes is None:
        return Compiled(seconds, 0, 0)
    # A donated argument and its result are the same memory.
    kept = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return Compiled(seconds, sizes.temp_size_in_bytes, kept)


def time_program(memory: dict[str, Any], name: str) -> float:
    """Task: seconds per step."""
    running: Running = memory[name][0]
    agreed(None)  # ranks begin together
    return running.run(running.times)


def gradient_of(memory: dict[str, Any], name: str) -> Any:
    """Task: the gradient as the program last found it, as NumPy arrays."""
    running, gradient = memory[name]
    return jax.device_get(gradient(running.state))


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
