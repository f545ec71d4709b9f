"""The companion of a process of a run: a script of its own that imports next to nothing, see `watch`.

    python companion.py FIRST WHO PID REPORT PATIENCE

FIRST is a file made by whichever companion is the first to report a lost process: those of processes that a launcher
ends afterwards keep silent. What to say when the process PID is lost comes by standard input, the last line counts, and
an empty one means that all is well. WHO names the process where it is stopped for REPORT seconds; after PATIENCE
seconds it is ended.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

POLL = 1.0  # seconds between two looks at the process
STOPPED = "Tt"  # states of a process stopped by a signal, or by a debugger


def state(pid: int) -> str:
    """The letter of a process's state, "" where it cannot be known."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name before the state stands in brackets, and may itself hold brackets and spaces.
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        pass
    try:  # systems without /proc
        done = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()[:1]


def say(line: str) -> None:
    """Write a line to standard error, where there still is one."""
    try:
        os.write(2, line.encode(errors="surrogateescape") + b"\n")
    except OSError:
        pass


def look(
    who: str, pid: int, report: float, patience: float, since: float | None, said: bool
) -> tuple[float | None, bool]:
    """Look at the process once: since when it is stopped, and whether that was said."""
    # A tuple, since "", an unknown state, is in every text.
    if state(pid)[:1] not in tuple(STOPPED):
        if said:
            say(f"{who} goes on.")
        return None, False
    now = time.monotonic()
    since = now if since is None else since
    if not said and now - since >= report:
        end = f"It is ended when it has been for {patience:g} s" if patience < float("inf") else "They wait on"
        say(
            f"{who} is stopped (by SIGSTOP or a debugger), and the others wait for it. {end} (backend.patience). "
            f"To let it go on: kill -CONT {pid}"
        )
        said = True
    if now - since >= patience:
        say(f"{who} has been stopped for {patience:g} s (backend.patience) and is ended.")
        # SIGTERM would wait until the process is continued.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return since, said


def main(first: str, who: str, pid: int, report: float, patience: float) -> None:
    """Watch until standard input ends, which is when the process does; then report it, if it did not say goodbye."""
    heard, since, said = b"", None, False
    while True:
        if select.select([0], [], [], POLL)[0]:
            # Not by sys.stdin: `select` does not see what its buffer has read ahead.
            block = os.read(0, 4096)
            if not block:
                break
            heard += block
        else:
            since, said = look(who, pid, report, patience, since, said)
    message = heard.splitlines()[-1] if heard else b""
    if not message:
        return
    try:
        # Of all companions that come here at once, only one can make the file.
        os.close(os.open(first, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    except OSError:  # no room for it, say: better said twice than not at all
        pass
    say(message.decode(errors="surrogateescape"))
    # Only now may the launcher see that the process has gone, and end the others.
    os.closerange(0, 256)
    # Until then their companions must still find the file.
    time.sleep(10)
    with contextlib.suppress(OSError):
        os.unlink(first)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))
