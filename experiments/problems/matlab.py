"""Arrays of numbers in MATLAB's files of version 5 to 7 (MAT-File Format, The MathWorks), and nothing else of them.

A file is a header and elements, each a type, a size and its bytes. Every size is compared with what is there before
memory is taken, which general readers do not do.
"""

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np

HEADER = 128  # bytes
MATRIX, COMPRESSED = 14, 15  # types of elements
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
COMPLEX = 0x0800  # flag of an array


class HDF5(ValueError):
    """A file of version 7.3, which is HDF5."""


def read(data: bytes, name: str, largest: int) -> tuple[np.ndarray | None, list[str]]:
    """The array of a name.

    Args:
        data: The file.
        name: The array's.
        largest: Bytes of an array at most.

    Returns:
        The array, None if there is none of this name; and the names of those before it, or of all.

    Raises:
        HDF5: It is of version 7.3.
        ValueError, struct.error, zlib.error: It is not such a file, or the array is none of real numbers.
    """
    # The writer has stored the two letters MI as one number: in reverse they tell of a little-endian machine.
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if data[:4] == b"\x89HDF" or (order and struct.unpack_from(f"{order}H", data, 124)[0] == 0x0200):
        raise HDF5
    if order is None:
        raise ValueError("it does not begin as one of version 5 to 7 does")
    names = []
    for kind, content in _elements(data[HEADER:], order):
        if kind == COMPRESSED:
            inner = zlib.decompressobj()
            content = inner.decompress(content, largest + HEADER)
            if inner.unconsumed_tail:
                raise ValueError(f"an array has more than {largest} bytes")
            kind, content = next(_elements(content, order))
        if kind != MATRIX:
            continue
        parts = _elements(content, order)
        flags, shape, title = (next(parts)[1] for _ in range(3))
        names.append(title.decode("ascii", errors="replace"))
        if names[-1] == name:
            sizes = np.frombuffer(shape, f"{order}i4").tolist()
            return _array(struct.unpack_from(f"{order}I", flags)[0], sizes, parts, order), names
    return None, names


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Types and contents of the elements of a file or of an array, one after another."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start, end = at + 8, at + 8 + (size if kind == COMPRESSED else -(-size // 8) * 8)  # with what fills eights
        if kind >> 16:  # a small one has its type, size and at most four bytes in eight
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        if size > min(end, len(data)) - start:
            raise ValueError(f"an element says that it has {size} bytes, but {min(end, len(data)) - start} follow")
        yield kind, data[start : start + size]
        at = end


def _array(flags: int, shape: list[int], parts: Iterator[tuple[int, bytes]], order: str) -> np.ndarray:
    """The array of these flags and this shape, whose numbers may be stored in a smaller type than its own."""
    dtype = CLASSES.get(flags & 0xFF)
    if dtype is None or flags & COMPLEX:
        raise ValueError("expected real numbers, found an array of another class")
    kind, content = next(parts)
    if kind not in TYPES or min(shape, default=-1) < 0:
        raise ValueError(f"expected an array of numbers, found type {kind} and shape {shape}")
    values = np.frombuffer(content, f"{order}{TYPES[kind]}")
    if values.size != math.prod(shape):
        raise ValueError(f"an array of shape {shape} has {values.size} numbers")
    with np.errstate(invalid="ignore"):
        array = values.astype(dtype)
    # NumPy would wrap around, and take nan for 0.
    if array.dtype.kind != "f" and not np.array_equal(array, values):
        raise ValueError(f"numbers that are no {np.dtype(dtype)}, as which the array is said to be")
    return array.reshape(shape, order="F")
