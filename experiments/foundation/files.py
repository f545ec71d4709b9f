"""Files read in bounded time and memory, whatever lies under their name."""

import errno
import os
import stat
from pathlib import Path
from typing import Protocol

from experiments.errors import ConfigError

BLOCK = 2**20  # bytes read at a time


class Readable(Protocol):
    """An open file of bytes."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""


def read_limited(path: Path, most: int, pipes: bool = False) -> bytes:
    """The contents of a file that holds at most `most` bytes.

    Args:
        path: The file; links are followed.
        most: Its largest size, in bytes. Never more than one byte above it is held in memory.
        pipes: Whether a pipe is taken too, such as a shell's `<(command)`. Else only a regular file is: a device may be
            endless, and a pipe without a writer keeps its reader waiting.

    Raises:
        OSError: It cannot be read, is too large or is no file; `strerror` says which.
    """
    # Without O_NONBLOCK opening a pipe waits for a writer, before anything could be asked about it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        # Of the open file: its name may belong to another by now.
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if pipes and stat.S_ISFIFO(status.st_mode):
            os.set_blocking(descriptor, True)
        elif not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is a device, a pipe or a socket, not a file", str(path))
        # The size spares reading what is too large; the limit holds anyway, as a file may grow and a pipe has no size.
        data = read_blocks(file, most) if status.st_size <= most else None
        if data is None:
            raise OSError(errno.EFBIG, f"it is larger than the {most} bytes that such a file may have", str(path))
        return data


def read_blocks(file: Readable, most: int) -> bytes | None:
    """What is left of an open file, None if that is more than `most` bytes.

    It is read block by block, since `read(n)` takes the memory of n bytes however few there are.
    """
    data = bytearray()
    while block := file.read(BLOCK):
        data += block
        if len(data) > most:
            return None
    return bytes(data)


def expanded(name: str, key: str) -> Path:
    """A path, `~` and `~user` in it expanded.

    Args:
        name: The path as it was given.
        key: What it was given as, for messages.

    Raises:
        ConfigError: There is no such home folder.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{key} = {name!r}: {str(error).rstrip('.')}. Write the path in full.") from None


def write_output(path: Path, data: str | bytes) -> None:
    """Write to a file that the user has named: into what is there, be it a link or a device, never in its place.

    Raises:
        OSError: It cannot be written; `filename` says where.
    """
    try:
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    except OSError as error:
        error.filename = str(path)  # an error of `write` itself has none
        raise


def is_file(path: Path) -> bool:
    """Whether there is a regular file of this name; none that can be reached has a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, say
        return False


def home() -> Path:
    """The user's home folder; where none is known, as for bare user numbers in containers, one that is not there."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/nonexistent")


def make_folder(folder: Path) -> None:
    """Make the folder of an option `--folder`, if it is not there.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--folder {folder}: cannot be made: {error.strerror}. Name another.") from None
