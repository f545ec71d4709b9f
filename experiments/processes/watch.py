"""Say so when a process of a run is killed or stopped: nothing that runs inside it could.

A small companion, `experiments.processes.companion`, waits for its process to end. If that did not say goodbye, the
companion names it and how to go on, before the launcher (whose connection it holds open meanwhile) notices and ends the
others. If the process is stopped, by SIGSTOP or a debugger, the others wait for it without a word: the companion says
which one they wait for, and ends it after a while if it is told to.
"""

import contextlib
import os
import subprocess
import sys
import tempfile

from experiments.processes import companion

REPORT = 15.0  # seconds after which a stopped process is named


class Watch:
    """Watches this process while it is open; use it as a context.

    Args:
        token: Only the first of those processes that share it is reported as lost.
        who: Names this process.
        patience: Seconds after which it is ended if it has been stopped all the time; None: it is waited for.
        report: Seconds after which it is said to be stopped.
    """

    def __init__(self, token: str, who: str, patience: float | None = None, report: float = REPORT) -> None:
        self._who = f"{who} (PID {os.getpid()} on {os.uname().nodename})"
        first = os.path.join(tempfile.gettempdir(), f"jaxmgrit-lost-{token}")
        # Process managers of MPI (PMI) take the end of this connection for the end of the process.
        connection = _descriptor(os.environ.get("PMI_FD", ""))
        words = [first, self._who, str(os.getpid()), str(report), str(patience or "inf")]
        # Without Python's variables and installed packages, which could slow or break it; in a session of its own,
        # so that Ctrl-C, or the end of the terminal, does not end it with the process.
        self._companion = subprocess.Popen(
            [sys.executable, "-I", "-S", companion.__file__, *words],
            stdin=subprocess.PIPE,
            start_new_session=True,
            pass_fds=[] if connection is None else [connection],
        )

    def __enter__(self) -> "Watch":
        return self

    def remedy(self, sentence: str) -> None:
        """What to say besides that this process was lost; the last one counts."""
        self._tell(f"{self._who} was lost: killed from outside, crashed, or cut off from the others. {sentence}")

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Say goodbye."""
        assert self._companion.stdin is not None
        if not self._companion.stdin.closed:
            self._tell("")
            with contextlib.suppress(OSError):
                self._companion.stdin.close()
            self._companion.wait()

    def _tell(self, line: str) -> None:
        assert self._companion.stdin is not None
        # One line, whatever a folder's name holds.
        text = " ".join(line.splitlines()).encode(errors="surrogateescape")
        # The companion may have been killed: then nobody reports a loss, and nothing is lost by that.
        with contextlib.suppress(OSError):
            self._companion.stdin.write(text + b"\n")
            self._companion.stdin.flush()


def _descriptor(text: str) -> int | None:
    """An open descriptor of this process, None where the text, of a launcher long gone perhaps, names none."""
    try:
        os.fstat(number := int(text))
    except (ValueError, OverflowError, OSError):
        return None
    return number
