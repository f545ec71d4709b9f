"""Signals end a run between two iterations, with a checkpoint, on all processes after the same one."""

import contextlib
import os
import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

import jaxmgrit as jm
from experiments.errors import Interrupted

ENDING = (signal.SIGINT, signal.SIGTERM)  # a second one of these ends the process at once
# Those that announce an end: a terminal that closes, schedulers, a limit on CPU time (which the kernel repeats), a
# timer set before the program was started, power that is about to fail (on Linux).
_ANNOUNCING = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGALRM", "SIGVTALRM", "SIGPWR")
WARNING = tuple(getattr(signal, name) for name in _ANNOUNCING if hasattr(signal, name))


def end_at_once() -> None:
    """From now on SIGTERM ends this process as it is, until an `Interruption` begins.

    One of several that ended in good order would wait, at MPI's end, for the others, and they for it. What is to be
    said of it its companion says.
    """
    with contextlib.suppress(ValueError):  # signals are the main thread's
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Interruption:
    """Turns the first signal into a request to stop; a second SIGINT or SIGTERM ends the process at once.

    Use it as a context. What is ignored when it begins, such as SIGHUP under `nohup`, stays ignored.

    Args:
        backend: Where the layers live: the ranks or processes that must stop after the same iteration.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._asked: int = 0
        self._endings = 0
        self._calls = 0
        self._iteration: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        try:
            for number in (*ENDING, *WARNING):
                ignored = number in WARNING and signal.getsignal(number) is signal.SIG_IGN
                # SIGTERM to one of several processes is for JAX's own handler, which tells the others.
                if not (ignored or (number == signal.SIGTERM and jax.process_count() > 1)):
                    self._before[number] = signal.signal(number, self._ask)
        except ValueError:  # signals reach the main thread alone; elsewhere whoever runs it must see to them
            self._before = {}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not installed from Python, which cannot put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._endings += number in ENDING
        if self._endings > 1:
            raise KeyboardInterrupt
        # The first signal names the end, whatever comes after it.
        self._asked = self._asked or number
        if self._iteration is not None:
            raise Interrupted(number, self._iteration)
        if jax.process_count() > 1:
            # For JAX's handler, which tells the others, so that all stop after the same iteration.
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self) -> int:
        """The signal that asks all processes to stop before they update the parameters again; 0 if there is none.

        Under several processes each must call it equally often.
        """
        self._calls += 1
        if isinstance(self._backend, jm.MPI):
            # The maximum is the same on all ranks: none stops alone.
            return max(self._backend.comm.allgather(self._asked))
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self._calls):
            return self._asked or signal.SIGTERM
        return self._asked if jax.process_count() == 1 else 0

    def end_at_once(self, iteration: int) -> None:
        """From now on nothing is left to be saved: a signal ends what is being done.

        Args:
            iteration: The last one of the training.

        Raises:
            Interrupted: A signal has come already, or (later, wherever the program is) comes.
        """
        self._iteration = iteration
        if self._before and signal.SIGTERM not in self._before:
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._ask)
        if self._asked:
            raise Interrupted(self._asked, iteration)
