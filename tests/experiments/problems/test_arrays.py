"""Hostile and damaged files of data: read as they are, or refused by name in bounded time and memory."""

import functools
import gzip
import io
import os
import struct
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from scipy.io import loadmat, savemat

from experiments.errors import ConfigError
from experiments.problems import arrays, indian_pines, mnist, sources

X = np.random.default_rng(0).normal(size=(40, 40))
MEMORY, SECONDS = 2**26, 5.0  # for files of some kB
SETTINGS = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def npy(shape, descr="|u1", data=b""):
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def npz(flag=0, method=0, content=None, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("x.npy", npy("(2,)", data=b"ab") if content is None else content)
    data = bytearray(file.getvalue())
    for signature, field in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        data[at + field] |= flag
        if method:
            data[at + field + 2] = method
    return bytes(data)


def twice(*names):
    """An archive with arrays of these names."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")  # of equal names
        for name in names:
            archive.writestr(name, npy("(2,)", data=b"ab"))
    return file.getvalue()


def numbers(kind, value):
    """A .mat file with a double in an array that is said to be of another class."""

    def element(number, content):
        return struct.pack("<II", number, len(content)) + content + bytes(-len(content) % 8)

    parts = [(6, struct.pack("<II", kind, 0)), (5, struct.pack("<ii", 1, 1)), (1, b"x"), (9, struct.pack("<d", value))]
    return b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + element(14, b"".join(element(*part) for part in parts))


def mat(**values):
    file = io.BytesIO()
    compressed = values.pop("compressed", False)
    savemat(file, values, do_compression=compressed)
    return file.getvalue()


HOSTILE = {
    "claims 1 TiB.npy": (npy("(1099511627776,)"), "1099511627776 bytes, but 0 follow"),
    "claims nothing times much.npy": (npy("(0, 1099511627776)"), None),
    "empty items.npy": (npy("(1099511627776,)", "|V0"), "expected numbers or texts"),
    "negative.npy": (npy("(-1, -1)", data=b"a"), "of shape"),
    "long header.npy": (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 2000, "not a valid"),
    "deep header.npy": (npy("(" * 9000), "not a valid"),
    "other version.npy": (b"\x93NUMPY\x09\x00" + bytes(200), r"not a valid"),
    "program.npy": (npy("(1,)", "|O", b"cos\nsystem\n"), "Object arrays cannot be loaded"),
    "encrypted.npz": (npz(flag=1), "encrypted, or compressed"),
    "unknown compression.npz": (npz(method=99), "not a valid|encrypted, or compressed"),
    "lzma.npz": (npz(compression=zipfile.ZIP_LZMA), "encrypted, or compressed"),
    "bzip2.npz": (npz(compression=zipfile.ZIP_BZIP2), "encrypted, or compressed"),
    "bomb.npz": (npz(content=bytes(2**28 + 1), compression=zipfile.ZIP_DEFLATED), "268435457 bytes, expected at most"),
    "claims 1 TiB.npz": (npz(content=npy("(1099511627776,)")), "1099511627776 bytes, but 0 follow"),
    "another kind.npz": (mat(y=X), "not a valid"),
    "version 7.3.mat": (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512), r"version 7\.3.*-v7"),
    "hdf5.mat": (b"\x89HDF\r\n\x1a\n" + bytes(512), r"version 7\.3.*-v7"),
    "struct.mat": (mat(x={"a": 1}), "expected real numbers, found an array of another class"),
    "cell.mat": (mat(x=np.array(["a", 1], object)), "expected real numbers, found an array of another class"),
    "300 as a byte.mat": (numbers(9, 300.0), "numbers that are no uint8"),
    "half as an integer.mat": (numbers(12, 0.5), "numbers that are no int32"),
    "1e300 as an integer.mat": (numbers(14, 1e300), "numbers that are no int64"),
    "nan as an integer.mat": (numbers(8, float("nan")), "numbers that are no int8"),
    "empty.mat": (b"", "not a valid"),
    "twice.npz": (twice("x.npy", "x.npy"), "it holds 'x' twice"),
    "twice by other names.npz": (twice("x", "x.npy"), "it holds 'x' twice"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_name(tmp_path, name):
    data, fault = HOSTILE[name]
    (tmp_path / name).write_bytes(data)
    if fault is None:
        assert sources.read_array(tmp_path / name, "x").size == 0
        return
    with pytest.raises(ConfigError, match=rf"(?s){name}.*({fault})"):
        sources.read_array(tmp_path / name, "x")


def test_sizes_are_bounded_before_memory_is_taken(tmp_path):
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(2**24)))
    with pytest.raises(ConfigError, match="expected at most 1000000 bytes when uncompressed"):
        arrays.read_bytes(tmp_path / "bomb.gz", 10**6)
    (tmp_path / "long").write_bytes(bytes(1001))
    with pytest.raises(ConfigError, match="larger than the 1000 bytes"):
        arrays.read_bytes(tmp_path / "long", 1000)
    (tmp_path / "endless").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name in ("endless", "pipe"):
        for read in (arrays.read_bytes, functools.partial(arrays.read_array, name="x")):
            with pytest.raises(ConfigError, match=f"{name}: cannot be read: it is a device, a pipe or a socket"):
                read(tmp_path / name)


def test_an_archive_that_understates_what_it_holds_takes_no_more_memory_than_it_says(tmp_path):
    size = 2**27
    data = bytearray(npz(content=npy((size,), data=bytes(size)), compression=zipfile.ZIP_DEFLATED))
    struct.pack_into("<I", data, data.find(b"PK\x01\x02") + 24, 1000)
    (tmp_path / "x.npz").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ConfigError, match="x.npz: not a valid"):
        sources.read_array(tmp_path / "x.npz", "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_whole_numbers_become_integers_and_others_stay():
    assert arrays.whole(np.array([0.0, 3.0])).dtype == np.int64
    for values in ([0.5], [np.nan], [np.inf], [2.0**60]):
        np.testing.assert_array_equal(arrays.whole(np.array(values)), np.array(values))
        assert arrays.whole(np.array(values)).dtype == np.float64


def test_arrays_in_any_order_and_dtype_are_read_as_numpy_reads_them(tmp_path):
    for number, array in enumerate(
        (X, np.asfortranarray(X), X.astype(">f4"), np.array(3), X[:0], X > 0, np.array("ab"))
    ):
        np.save(tmp_path / f"{number}.npy", array)
        np.savez_compressed(tmp_path / f"{number}.npz", x=array)
        for suffix in ("npy", "npz"):
            own = arrays.read_array(tmp_path / f"{number}.{suffix}", "x")
            np.testing.assert_array_equal(own, array)
            assert own.dtype == array.dtype


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "c8", "?"])
def test_matlabs_arrays_of_numbers_are_read_as_scipy_reads_them(tmp_path, kind, compressed):
    values = (7 * np.arange(24).reshape(2, 3, 4) % 5).astype(kind)
    (tmp_path / "x.mat").write_bytes(mat(first=X, x=values, s={"a": 1}, one=values[:1, 0, 0], compressed=compressed))
    if kind == "c8":
        with pytest.raises(ConfigError, match="expected real numbers"):
            arrays.read_array(tmp_path / "x.mat", "x")
        return
    for name in ("x", "one", "first"):
        own, expected = arrays.read_array(tmp_path / "x.mat", name), loadmat(tmp_path / "x.mat")[name]
        np.testing.assert_array_equal(own, expected)
        assert own.dtype == expected.dtype


def valid_files():
    """Of each kind one, and what reads it."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=X, train=np.arange(9), validation=np.arange(9, 12))
    saved = io.BytesIO()
    np.save(saved, X)
    text = "\n".join(",".join(["7"] * 785) for _ in range(3)).encode()
    labels = np.arange(20, dtype=np.uint8) % 10
    read_x = functools.partial(arrays.read_array, name="x")
    return [
        ("x.npy", saved.getvalue(), read_x),
        ("x.npz", buffer.getvalue(), read_x),
        ("split.npz", buffer.getvalue(), functools.partial(indian_pines.read_split, points=10249)),
        ("x.mat", mat(x=X), read_x),
        ("small.mat", mat(x=X, y=np.arange(3), compressed=True), read_x),
        ("x.gz", gzip.compress(bytes(range(256)) * 4), arrays.read_bytes),
        ("t10k-labels-idx1-ubyte", struct.pack(">2I", 0x0801, 20) + labels.tobytes(),
         functools.partial(mnist.read_digits, name="t10k-labels-idx1-ubyte")),
        (mnist.PACKAGED, gzip.compress(text), lambda path: mnist._packaged(sources.Place("here", path.parent))),
    ]  # fmt: skip


FILES = valid_files()


class File(NamedTuple):
    name: str
    data: bytes
    read: Callable

    def __repr__(self):
        return f"{self.name} of {len(self.data)} bytes, first {self.data[:300].hex()}"


@st.composite
def damaged(draw):
    """A file with bytes changed, cut off, put in or repeated."""
    name, data, read = draw(st.sampled_from(FILES))
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        # Half of the damages hit the first bytes, where sizes are.
        at = draw(st.integers(0, len(data)) | st.integers(0, min(200, len(data))))
        kind = draw(st.sampled_from(["change", "cut", "insert", "repeat", "large"]))
        if kind == "change" and at < len(data):
            data[at] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=20))
        elif kind == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 500))]
        else:
            data[at : at + 4] = b"\xff\xff\xff\x7f"
    return File(name, bytes(data), read)


def read_or_refuse(folder, file):
    name, data, read = file
    path = folder / name
    path.write_bytes(data)
    tracemalloc.start()
    start = time.monotonic()
    try:
        read(path)
    except ConfigError as error:
        assert name in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY
    assert time.monotonic() - start < SECONDS


@settings(max_examples=500, **SETTINGS)
@given(file=damaged())
def test_damaged_files_are_read_or_refused_by_name(tmp_path_factory, file):
    read_or_refuse(tmp_path_factory.getbasetemp(), file)
