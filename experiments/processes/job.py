"""One process among those of a training."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True)
class Job:
    """This process among those of a training.

    Attributes:
        index: 0 is the one that prints and writes.
        count: How many processes there are.
        noun: What one of them is called.
        gather: From a text to those of all processes, in order; all must call it.
        abort: End this process, and with it the others, at once.
        patience: Seconds that the others wait for a stopped one before it is ended; None: as long as it takes.
    """

    index: int
    count: int
    noun: str
    gather: Callable[[str], list[str]]
    abort: Callable[[int], NoReturn]
    patience: float | None = None

    @property
    def name(self) -> str:
        """Of this process, for messages."""
        return f"{self.noun} {self.index} of {self.count}"

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.index == 0


ALONE = Job(0, 1, "process", lambda text: [text], lambda code: os._exit(code))
