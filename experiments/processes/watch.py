"""Say so when a process of a run is killed: nothing that runs inside it could.

A small companion waits for its process to end. If that did not say goodbye, the companion names it and how to go on,
before the launcher (whose connection it holds open meanwhile) notices and ends the others.
"""

import os
import subprocess
import sys
import tempfile

# `first` is made by whichever companion is first: those of processes that a launcher ends afterwards keep silent.
_COMPANION = """
import os, sys, time
first, said = sys.argv[1], b""
while block := os.read(0, 4096):
    said += block
*_, message = said.splitlines()
if message:
    try:
        os.close(os.open(first, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        sys.exit()
    os.write(2, message + b"\\n")
    os.closerange(0, 256)
    time.sleep(10)
    os.unlink(first)
"""


class Watch:
    """Watches this process while it is open; use it as a context.

    Args:
        token: Only the first of those processes that share it is reported.
        who: Names this process.
    """

    def __init__(self, token: str, who: str) -> None:
        self._who = f"{who} (PID {os.getpid()} on {os.uname().nodename})"
        first = os.path.join(tempfile.gettempdir(), f"jaxmgrit-lost-{token}")
        # Process managers of MPI (PMI) take the end of this connection for the end of the process.
        connection = os.environ.get("PMI_FD", "")
        self._companion = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _COMPANION, first],
            stdin=subprocess.PIPE,
            start_new_session=True,
            pass_fds=[int(connection)] if connection.isdecimal() else [],
        )

    def __enter__(self) -> "Watch":
        return self

    def remedy(self, sentence: str) -> None:
        """What to say besides that this process was lost; the last one counts."""
        self._tell(f"{self._who} was lost: killed from outside, or crashed. {sentence}")

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Say goodbye."""
        assert self._companion.stdin is not None
        if not self._companion.stdin.closed:
            self._tell("")
            self._companion.stdin.close()
            self._companion.wait()

    def _tell(self, line: str) -> None:
        assert self._companion.stdin is not None
        self._companion.stdin.write(line.encode() + b"\n")
        self._companion.stdin.flush()
