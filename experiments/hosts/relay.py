"""A cable with a latency: two network interfaces, and every packet of one goes to the other after a while.

python relay.py INTERFACE INTERFACE SECONDS, as root. It runs by itself, so it imports nothing else of the project.
"""

import contextlib
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

HELLO = "ready"
MTU = 1500  # bytes; the header of a frame comes on top
HANDLING = 5e-5  # seconds that a packet takes through this process besides
TUNSETIFF, TAP_WITHOUT_HEADER = 0x400454CA, 0x0002 | 0x1000  # linux/if_tun.h


def interface(name: str) -> int:
    """A new interface, and what is sent through it as a file."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH", name.encode(), TAP_WITHOUT_HEADER))
    return file


def pass_on(ends: tuple[int, int], latency: float) -> None:
    """Hand packets on, each `latency` seconds after it came, for ever."""
    waiting: dict[int, deque[tuple[float, bytes]]] = {end: deque() for end in ends}
    other = dict(zip(ends, reversed(ends), strict=True))
    while True:
        due = min((queue[0][0] for queue in waiting.values() if queue), default=None)
        # Not epoll, which in Python rounds up to milliseconds.
        pause = None if due is None else max(0.0, due - time.monotonic())
        for end in select.select(ends, (), (), pause)[0]:
            now = time.monotonic()
            while (frame := _read(end)) is not None:
                waiting[other[end]].append((now + latency, frame))
        for end, queue in waiting.items():
            while queue and queue[0][0] <= time.monotonic():
                _write(end, queue.popleft()[1])


def _read(end: int) -> bytes | None:
    try:
        # One frame a read; what did not fit would be cut off.
        return os.read(end, MTU + 64)
    except BlockingIOError:
        return None


def _write(end: int, frame: bytes) -> None:
    try:
        os.write(end, frame)
    except OSError:  # the interface is down, or its queue full: lost, as on a cable
        pass


if __name__ == "__main__":
    first, second = interface(sys.argv[1]), interface(sys.argv[2])
    # A cable does not wait for a core: ahead of the programs that use it, and woken to the microsecond.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    print(HELLO, flush=True)
    pass_on((first, second), max(0.0, float(sys.argv[3]) - HANDLING))
