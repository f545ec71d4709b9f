"""Programs timed in turns on one core: what one machine's moods do to one, they do to all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

PyTree = Any


# Seconds of a turn of a quick program, short enough to be left alone now and then on a busy machine; and turns at most.
TURN, MOST = 0.005, 200


class Timed(NamedTuple):
    """One program's cost.

    Attributes:
        seconds: of one call, in the quickest turn: what else the machine does only ever adds to a time.
        compile_seconds: of tracing and compiling.
        bytes: temporary memory, as the compiler says; None where it does not.
        value: what it returned.
    """

    seconds: float
    compile_seconds: float
    bytes: int | None
    value: PyTree


def pin() -> str:
    """Bind this process and all its threads to one core, before JAX starts any; says which."""
    if not hasattr(os, "sched_setaffinity"):
        return "not pinned (this system cannot)"
    # The last one, since the first serve the system most.
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return f"pinned to core {core}"


def in_turns(
    programs: Mapping[str, Callable[..., PyTree]], args: tuple[PyTree, ...], seconds: float = 2.0, rounds: int = 7
) -> dict[str, Timed]:
    """Compile all programs, then call them in turns.

    Args:
        programs: functions of `args`, to be jitted.
        args: what all are called with.
        seconds: about how long all calls may take together.
        rounds: at least so many turns; quick programs are called several times a turn, for some milliseconds.
    """
    compiled, cost = {}, {}
    for name, f in programs.items():
        start = time.perf_counter()
        compiled[name] = jax.jit(f).lower(*args).compile()
        cost[name] = time.perf_counter() - start
    values = {name: jax.block_until_ready(f(*args)) for name, f in compiled.items()}
    once = {name: min(_seconds(f, args, 1) for _ in range(3)) for name, f in compiled.items()}
    calls = {name: max(1, int(TURN / t)) for name, t in once.items()}
    samples: dict[str, list[float]] = {name: [] for name in compiled}
    turns = max(rounds, min(MOST, int(seconds / sum(once[name] * calls[name] for name in once))))
    for _ in range(turns):
        for name, f in compiled.items():
            samples[name].append(_seconds(f, args, calls[name]))
    return {name: Timed(min(samples[name]), cost[name], _memory(compiled[name]), values[name]) for name in compiled}


def _seconds(f: Callable[..., PyTree], args: tuple[PyTree, ...], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        result = f(*args)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def _memory(compiled: Any) -> int | None:
    analysis = compiled.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)
