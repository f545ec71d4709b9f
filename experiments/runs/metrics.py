"""The rows of metrics.jsonl: one JSON object per iteration; written line by line, read with its damages noticed.

Rows carry no checksum, but the numbers of their iterations ascend one by one: a line that is no row, or whose number is
out of order, is damaged and skipped; a damaged byte can lose at most two rows, where it joins two lines.
"""

import contextlib
import fcntl
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from experiments.foundation.numbers import is_number
from experiments.runs.files import Unreadable, open_regular, write_all

Row = dict[str, Any]
METRICS = "metrics.jsonl"
LONGEST = 4096  # bytes of a line: 15 numbers with their names
MOST_DAMAGED = 2**20  # bytes in a row that hold no row; then the file is none of metrics, such as one huge hole
NUMBERS = (  # what every row holds
    "inexact_loss",
    "inexact_accuracy",
    "objective",
    "grad_norm",
    "residual_norm",
    "adjoint_residual_norm",
    "result",
    "seconds",
)


class Table(NamedTuple):
    """The rows of a file of metrics.

    Attributes:
        rows: Those that can be read, by ascending iteration; null stands for numbers that are not finite.
        ends: Where each ends in the file.
        numbers: Of its line, from 1.
        damaged: Numbers of the lines that are none; a last line that is not complete is not counted.
    """

    rows: list[Row]
    ends: list[int]
    numbers: list[int]
    damaged: list[int]

    def before(self, iteration: int) -> "Table":
        """Only the rows before an iteration, and the damages before the first one after them."""
        count = sum(row["iteration"] < iteration for row in self.rows)
        damaged = [n for n in self.damaged if count == len(self.rows) or n < self.numbers[count]]
        return Table(self.rows[:count], self.ends[:count], self.numbers[:count], damaged)


def read_table(path: Path, most: int | None = None) -> Table:
    """Read a file of metrics.

    Args:
        path: The file.
        most: Rows that it can have at most; None: any number.

    Raises:
        Unreadable: It is no regular file, larger than so many rows, or cannot be read.
    """
    try:
        # Without O_NONBLOCK a pipe of this name would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise Unreadable(f"it cannot be read: {error.strerror}") from None
    with open_regular(descriptor) as file:
        return _read_table(file, most)


def _read_table(file: BinaryIO, most: int | None) -> Table:
    size = os.fstat(file.fileno()).st_size
    # There is a row of iteration 0 too, and a last line may be incomplete.
    if most is not None and size > (most + 2) * LONGEST:
        raise Unreadable(f"its {size} bytes are more than {most} rows can have")
    candidates, damaged, position, number, idle = [], [], 0, 1, 0
    for piece in _lines(file):
        position += len(piece)
        row = _row(piece)
        idle = 0 if row is not None else idle + len(piece)
        if idle > MOST_DAMAGED:
            raise Unreadable(f"it holds no row in more than {MOST_DAMAGED} bytes")
        if row is not None:
            candidates.append((row, position, number))
        elif piece.endswith(b"\n"):
            damaged.append(number)
        number += piece.endswith(b"\n")
    table = Table([], [], [], damaged)
    for i, (row, end, number) in enumerate(candidates):
        last = table.rows[-1]["iteration"] if table.rows else -1
        following = candidates[i + 1][0]["iteration"] if i + 1 < len(candidates) else None
        too_far = following is not None and last < following < row["iteration"]  # a digit of its number is damaged
        if row["iteration"] > last and not too_far:
            table.rows.append(row)
            table.ends.append(end)
            table.numbers.append(number)
        else:
            damaged.append(number)
    damaged.sort()
    return table


def check_table(table: Table, iteration: int, gaps: bool) -> list[str]:
    """Whether a table has the rows before an iteration from which a training goes on.

    Args:
        table: The table.
        iteration: From which training goes on.
        gaps: Whether it may do so though rows are missing.

    Returns:
        Sentences about damaged lines, which are skipped; none where all rows are as they were written.

    Raises:
        Unreadable: More rows are missing than the damaged lines were.
    """
    held = table.before(iteration)
    missing = iteration - len(held.rows)
    if missing > 2 * len(held.damaged) and not gaps:
        raise Unreadable(f"it has {len(held.rows)} of the {iteration} rows before iteration {iteration}")
    # Without a missing row, what follows the last one belongs to the iterations that are done again.
    damaged = [n for n in held.damaged if missing or (held.numbers and n < held.numbers[-1])]
    remarks = []
    if damaged:
        numbers = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        remarks.append(f"{METRICS}: damaged, and skipped: line{'s' if len(damaged) > 1 else ''} {numbers}")
    if missing:
        remarks.append(f"{METRICS}: {missing} of the {iteration} rows before iteration {iteration} are missing")
    return remarks


class Lines:
    """A file of JSON objects, one a line, that grows at its end and can be cut back.

    Args:
        path: The file, made if there is none.

    Raises:
        BlockingIOError: Another process has it open.
        Unreadable: It is no regular file.
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666)
        # Of a copy, since a file object closes its descriptor.
        open_regular(os.dup(descriptor)).close()
        self._file = FileIO(descriptor, "a+b")  # without a buffer: what could not be written is not tried again
        try:
            # The kernel drops this lock with the process, however that ends.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise
        except OSError:  # a file system without locks
            pass

    def add(self, row: Mapping[str, Any]) -> None:
        """Add one line, at once in the file; numbers that are not finite become null.

        Raises:
            OSError: It cannot be written; nothing of it is.
        """
        data = json.dumps({key: finite(value) for key, value in row.items()}).encode() + b"\n"
        # Where a disk fills up within a line, its half is cut off again.
        size = os.fstat(self._file.fileno()).st_size
        try:
            write_all(self._file, data)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            error.filename = str(self._path)
            raise

    def cut_lines(self, count: int) -> int:
        """Keep the first lines only; how many there are of them."""
        with self._reader() as file:
            # What is no line ends it: of a file with one huge hole all would be read.
            whole = itertools.takewhile(lambda line: line.endswith(b"\n"), _lines(file))
            kept = [len(line) for line in itertools.islice(whole, count)]
        self._file.truncate(sum(kept))
        return len(kept)

    def cut_rows(self, iteration: int) -> None:
        """Keep the rows before an iteration only."""
        with self._reader() as file:
            ends = _read_table(file, None).before(iteration).ends
        self._file.truncate(ends[-1] if ends else 0)

    def _reader(self) -> BinaryIO:
        """The file from its beginning: this very one, whatever has its name by now."""
        self._file.seek(0)
        return os.fdopen(os.dup(self._file.fileno()), "rb")

    def is_in_place(self) -> bool:
        """Whether the file still has its name: it may have been moved, removed or replaced."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except OSError:
            return False

    def sync(self) -> None:
        """Wait until everything is on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def finite(value: object) -> Any:
    """A value as JSON can hold it: None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one that is longer than any row, pieces that are no rows."""
    while line := file.readline(LONGEST):
        yield line


def _row(line: bytes) -> Row | None:
    """The row in a line, None if it holds none."""
    if not line.endswith(b"\n"):
        return None
    try:
        # Python's json takes NaN and Infinity, which are written as null here.
        row = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not _is_integer(row.get("iteration")) or not all(key in row for key in NUMBERS):
        return None
    return row if all(value is None or is_number(value) for value in row.values()) else None


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _is_integer(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62
