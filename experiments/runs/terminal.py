"""What is said on stdout and stderr; neither ends a program when nobody reads it any more.

A closed pipe (`| head`), a terminal that is gone, a full disk under a log file: the stream is given up, with one
sentence on the other. Characters that a terminal's encoding lacks are written as backslash escapes.
"""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, TextIO

from experiments.errors import Terminated

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and ends of lines


class Stream:
    """Stdout or stderr as they are at the moment, written to without ever raising.

    Attributes:
        remark: What to say on stderr when this stream has been lost; "": nothing.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lost: TextIO | None = None
        self._failed: TextIO | None = None
        self._own: TextIO | None = None
        self.remark = ""

    def write(self, text: str) -> int:
        """Write, or give the stream up."""
        self._attempt(lambda stream: _write(stream, text))
        return len(text)

    def flush(self) -> None:
        """Flush, or give the stream up."""
        self._attempt(lambda stream: stream.flush())

    def isatty(self) -> bool:
        """Whether it is a terminal that can still be written to."""
        stream = self._stream
        return stream is not None and stream.isatty()

    @property
    def failed(self) -> bool:
        """Whether what was written is lost, and not because its reader had read enough."""
        return self._failed is not None and self._failed is self._current

    @property
    def encoding(self) -> str:
        """Of its characters."""
        return getattr(self._stream, "encoding", None) or "ascii"

    def say(self, *lines: str) -> None:
        """Write lines, at once; what a terminal would take for commands is written as escapes.

        Names in a file that somebody else has made may hold such.
        """
        self.write("".join(_CONTROL.sub(lambda character: repr(character[0])[1:-1], line) + "\n" for line in lines))
        self.flush()

    def take(self) -> None:
        """Stand in for the stream: what is printed, by whatever library, never raises either."""
        self._own = getattr(sys, self._name)
        setattr(sys, self._name, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    @property
    def _current(self) -> TextIO | None:
        stream: Any = getattr(sys, self._name)
        # After `take` the name leads to this object.
        current: TextIO | None = self._own if stream is self else stream
        return current

    @property
    def _stream(self) -> TextIO | None:
        stream = self._current
        return None if stream is None or stream is self._lost or stream.closed else stream

    def _attempt(self, act: Any) -> None:
        stream = self._stream
        if stream is None:
            return
        try:
            act(stream)
        except OSError as error:
            self._lost = stream
            if not isinstance(error, BrokenPipeError):
                self._failed = stream
            with contextlib.suppress(OSError, ValueError):  # what is still in its buffer must not fail again at exit
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
            if self is OUT and (self.remark or self.failed):
                remark = f": {self.remark}" if self.remark else ""
                ERR.say(f"{self._name} cannot be written any more ({error.strerror}){remark}")


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


OUT, ERR = Stream("stdout"), Stream("stderr")


def occupy_closed_streams() -> None:
    """Give stdout and stderr, where they were closed before the program began, a descriptor that leads nowhere.

    Otherwise the first file that is opened gets theirs, and whatever a library prints goes into it.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command as a program: a reader that goes away or a full disk under its output does not end it.

    Args:
        main: From the command line to the exit code. Ctrl-C ends it with a word and the code 130, a file that cannot be
            read or written with its name and the code 2. SIGTERM ends it with 143, after its `finally` blocks: what it
            has started and made for the time being (processes, network namespaces) does not outlive it.
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    occupy_closed_streams()
    OUT.take()
    ERR.take()
    try:
        code = main()
    except KeyboardInterrupt:
        ERR.say("interrupted")
        code = 130
    except Terminated:
        code = 128 + signal.SIGTERM
    except OSError as error:
        # Of a file that the user has named, mostly; what has no name is a fault of the program.
        if error.filename is None:
            raise
        ERR.say(f"{error.filename}: {error.strerror}")
        code = 2
    # Here a failure is given up quietly; at its exit Python would report it, with the code 120.
    OUT.flush()
    sys.exit(code)
