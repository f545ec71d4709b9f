"""Files read with a bound on their size, and written whole or not at all."""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from experiments.foundation.files import read_limited


class Unreadable(ValueError):
    """A file that is not read; the message says why, but not which."""


def read_bounded(path: Path, most: int) -> bytes:
    """The contents of a file of a run.

    Args:
        path: The file.
        most: Bytes that it can have at most.

    Raises:
        Unreadable: It is larger, no regular file, or cannot be read.
    """
    try:
        return read_limited(path, most)
    except OSError as error:
        raise Unreadable(f"it cannot be read: {error.strerror}") from None
    except MemoryError:
        raise Unreadable("it cannot be read: it does not fit into memory") from None


def checksum(values: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, whatever the order of its keys and the white space between them."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def open_regular(descriptor: int) -> BinaryIO:
    """A file object of a descriptor.

    Raises:
        Unreadable: It is not that of a regular file; it has been closed.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unreadable("expected a regular file")
    return os.fdopen(descriptor, "rb")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is on disk in full, or else as it was.

    Raises:
        OSError: It cannot be written; `filename` says where.
    """
    # In the same folder: a rename is all or nothing within one file system only.
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        write_synced(unfinished, data)
        unfinished.replace(path)
        # The rename itself is in the folder, which is not written with the file.
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        error.filename = str(path)  # the one that the user knows of
        raise


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on disk.

    Raises:
        OSError: It cannot be written; `filename` says where.
    """
    try:
        with path.open("wb", buffering=0) as file:  # nothing is left for `close` to write, and to fail again
            write_all(file, data)
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)
        raise


def write_all(file: FileIO, data: bytes) -> None:
    """Write all bytes to a file without a buffer, which may take but a part at a time."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def sync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
