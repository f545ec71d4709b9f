"""Ctrl-C and SIGTERM end a run between two iterations, on all processes after the same one."""

import os
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils

import jaxmgrit as jm

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Turns the first SIGINT or SIGTERM into a request; a second one ends the process at once. Use it as a context.

    Args:
        backend: Where the layers live: the ranks or processes that must stop after the same iteration.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._asked: int = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        try:
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._ask)
        except ValueError:  # signals reach the main thread alone; elsewhere whoever runs it must see to them
            self._before = {}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = number
        if jax.process_count() > 1:  # JAX's own handler tells the other processes
            signal.signal(signal.SIGTERM, self._before[signal.SIGTERM])
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, iteration: int) -> int:
        """The signal that asks all processes to stop before they update the parameters again; 0 if there is none.

        Under several processes each must call it once for every iteration.
        """
        if isinstance(self._backend, jm.MPI):
            return max(self._backend.comm.allgather(self._asked))
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(iteration):
            return self._asked or signal.SIGTERM
        return self._asked if jax.process_count() == 1 else 0
