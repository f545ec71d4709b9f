"""Arrays in files: sizes are compared with headers before memory is taken, and every fault of a file is named."""

import contextlib
import gzip
import hashlib
import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from experiments.errors import ConfigError
from experiments.foundation.files import read_blocks, read_limited
from experiments.problems import matlab

LARGEST = 2**28  # bytes of a file or of an array in it; the largest known one, MNIST's training images, has 47e6
HEADER = 2**14  # bytes in which the header of an npy array must end; NumPy writes less than 200
NPZ_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy writes; others expand without any bound


def corrupt(path: Path, fault: str) -> ConfigError:
    """The error of a file that is not what it should be."""
    return ConfigError(f"{path}: {fault}. Remove the file and get it anew, or name another folder.")


def md5(data: bytes) -> str:
    """A checksum, against accidents and mistaken files."""
    # The flag says what it is not for: systems in FIPS mode refuse MD5 without it.
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """A file's contents, uncompressed where its name ends in .gz.

    Args:
        path: The file.
        most: Bytes it may have, compressed and uncompressed.

    Raises:
        ConfigError: A truncated, corrupt or too large file.
    """
    data = _raw(path, most)
    if path.suffix.lower() != ".gz":
        return data
    # A few kilobytes may expand to gigabytes: what comes out is bounded as well.
    with _named_faults(path, "gzip"), gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        uncompressed = read_blocks(file, most)
    if uncompressed is None:
        raise corrupt(path, f"expected at most {most} bytes when uncompressed, found more")
    return uncompressed


def read_array(path: Path, name: str) -> np.ndarray:
    """An array of numbers, truth values or texts of a .npy, .npz or .mat file.

    Args:
        path: The file.
        name: The array's, in files of several.

    Returns:
        The array, in the file's own dtype and shape.

    Raises:
        ConfigError: A corrupt or too large file, or one without the array.
    """
    kind = path.suffix.lower()
    data = _raw(path, LARGEST)
    with _named_faults(path, kind):
        if kind == ".mat":
            return _mat(path, data, name)
        # By what the file holds, as np.load does, whatever its suffix.
        return _npz(path, data, name) if data[:2] == b"PK" else _npy(data)


def whole(array: np.ndarray) -> np.ndarray:
    """The array as integers where its numbers are whole, as MATLAB's doubles often are; else as it is."""
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.round(array)).all():
        # From there on doubles skip integers, and a whole number may be another one rounded.
        if np.abs(array).max(initial=0) < 2**53:
            return array.astype(np.int64)
    return array


def _raw(path: Path, most: int) -> bytes:
    try:
        return read_limited(path, most)
    except OSError as error:
        raise corrupt(path, f"cannot be read: {error.strerror}") from None


@contextlib.contextmanager
def _named_faults(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a ConfigError: of a damaged file its depths may raise anything."""
    try:
        yield
    except ConfigError:
        raise
    except EOFError as error:
        said = "the gzip file is truncated" if kind == "gzip" else f"not a valid {kind} file ({error or 'truncated'})"
        raise corrupt(path, said) from None
    except matlab.HDF5:
        raise ConfigError(
            f"{path}: a .mat file of version 7.3, which is HDF5 and not read here. In MATLAB save it with -v7: "
            "save(file, name, '-v7')."
        ) from None
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise corrupt(path, f"not a valid {kind} file ({said})") from None


def _npy(data: bytes) -> np.ndarray:
    # A header says how long it is: no more than this is parsed of one that lies.
    head = io.BytesIO(data[:HEADER])
    version = npy.read_magic(head)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the npy format, expected (1, 0) or (2, 0)")
    shape, columns_first, dtype = readers[version](head)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded, as they are programs")
    if dtype.kind not in "biufcSU" or dtype.itemsize == 0:
        raise ValueError(f"expected numbers or texts, found {dtype}")
    size, left = math.prod(shape) * dtype.itemsize, len(data) - head.tell()
    if min(shape, default=0) < 0 or size > left:
        raise ValueError(f"its header says {dtype} of shape {shape}, {size} bytes, but {left} follow")
    flat = np.frombuffer(data, dtype, math.prod(shape), head.tell()) if size else np.zeros(math.prod(shape), dtype)
    # Copied, since views of bytes cannot be written to.
    return flat.reshape(shape, order="F" if columns_first else "C").copy()


def _npz(path: Path, data: bytes, name: str) -> np.ndarray:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        names = [entry.filename.removesuffix(".npy") for entry in entries]
        if name not in names:
            raise corrupt(path, f"expected an array '{name}', found {', '.join(names)[:200] or 'none'}")
        if names.count(name) > 1:
            raise ValueError(f"it holds '{name}' twice")
        entry = entries[names.index(name)]
        if entry.compress_type not in NPZ_METHODS or entry.flag_bits & 1:
            raise ValueError("encrypted, or compressed in a way that numpy.savez_compressed does not use")
        if entry.file_size > LARGEST:
            raise ValueError(f"'{name}' has {entry.file_size} bytes, expected at most {LARGEST}")
        with archive.open(entry) as member:
            # By blocks: at once all would be unpacked, however little the archive says that it is.
            content = read_blocks(member, entry.file_size)
    if content is None:
        raise ValueError(f"'{name}' has more than the {entry.file_size} bytes that the archive tells of")
    return _npy(content)


def _mat(path: Path, data: bytes, name: str) -> np.ndarray:
    array, names = matlab.read(data, name, LARGEST)
    if array is None:
        raise corrupt(path, f"expected an array '{name}', found {', '.join(names)[:200] or 'none'}")
    return array
