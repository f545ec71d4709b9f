"""Another's program that is timed: it is told a case, and then when to run, by lines of text.

Lines to the program's standard input, each answered by one line of its standard output:

- a JSON object, the case (`describe`), is answered by `ready` once everything is loaded and compiled;
- `run` is answered by the seconds that one gradient took, as a decimal number;
- the end of the input ends the program.

What it writes to its standard error is shown as it is.
"""

import json
import math
import os
import selectors
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from experiments.timing.contenders import FINAL_TIME, Case

STARTING, RUNNING, ENDING = 300.0, 120.0, 5.0  # seconds for being ready, for a run, for ending by itself


class PeerError(RuntimeError):
    """What is wrong with a program; the message names it and what was expected."""


def describe(case: Case, cores: Sequence[int] | None) -> dict[str, Any]:
    """A case as a program is told it.

    Args:
        case: Network and batch.
        cores: Those it is pinned to; None: it is not.
    """
    described = {key: value for key, value in asdict(case).items() if key != "factor"}
    return described | {"step_size": FINAL_TIME / case.layers, "threads": len(cores) if cores else None}


class Peer:
    """A program that runs when told.

    Args:
        command: As for a shell, but no shell reads it.
        case: Network and batch.
        cores: To which it is pinned; None: to none.
        waits: Seconds that it has for being ready, and for a run.

    Raises:
        PeerError: It cannot be started, or does not get ready.
    """

    def __init__(
        self,
        command: str,
        case: Case,
        cores: Sequence[int] | None = None,
        waits: tuple[float, float] = (STARTING, RUNNING),
    ) -> None:
        self.command, self._waits, self._pending = command, waits, b""
        try:
            words = shlex.split(command)
            self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        except (OSError, ValueError, IndexError) as error:
            raise PeerError(f"--peer {command!r} cannot be started: {error}. Name a program and its words.") from None
        try:
            if cores is not None:
                # At once, since threads keep the cores that they begin with.
                os.sched_setaffinity(self._process.pid, cores)
            answer = self._ask(json.dumps(describe(case, cores)), waits[0])
            if answer != "ready":
                raise self._error(f"answered {answer!r} to the case, expected 'ready'")
        except BaseException:
            self.close()
            raise

    def run(self) -> float:
        """Seconds of one gradient, as the program says.

        Raises:
            PeerError: It ends, takes too long, or answers something else.
        """
        answer = self._ask("run", self._waits[1])
        try:
            seconds = float(answer)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise self._error(f"answered {answer!r} to 'run', expected seconds such as 0.0125")
        return seconds

    def close(self) -> None:
        """End the program: by the end of its input, and by force if that does not."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(ENDING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _error(self, what: str) -> PeerError:
        return PeerError(f"--peer {self.command!r} {what}. See docs/guides/peers.md for what is said to whom.")

    def _ask(self, line: str, limit: float) -> str:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
        except BrokenPipeError:
            raise self._error(f"has ended with code {self._process.wait(ENDING)} before {line[:40]!r}") from None
        return self._answer(line, time.monotonic() + limit, limit)

    def _answer(self, line: str, deadline: float, limit: float) -> str:
        """The next line of its output; a read would wait for ever."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self._error(f"has not answered {line[:40]!r} within {limit:g} s")
                if not (more := os.read(self._process.stdout.fileno(), 4096)):
                    raise self._error(f"has ended, or closed its output, without an answer to {line[:40]!r}")
                self._pending += more
        answer, _, self._pending = self._pending.partition(b"\n")
        return answer.decode(errors="replace").strip()
