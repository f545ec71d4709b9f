"""Reading data: what is wrong with a file or a place is named; downloads are checked before they count."""

import functools
import gzip
import http.server
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from scipy import io

from experiments.errors import ConfigError
from experiments.foundation.files import home
from experiments.problems import sources
from experiments.problems.sources import Place

REMEDY = r"Remove the file and get it anew"


def write(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "fault"),
    [
        ("truncated.gz", gzip.compress(bytes(range(200)))[:-30], r"truncated\.gz: the gzip file is truncated"),
        ("other.gz", b"not gzip at all", r"other\.gz: not a valid gzip file \(Not a gzipped file"),
        (
            "damaged.gz",
            (lambda good: good[:30] + bytes([good[30] ^ 255]) + good[31:])(gzip.compress(np.random.bytes(300))),
            r"damaged\.gz: not a valid gzip file \(",
        ),
    ],
)
def test_compressed_files_with_faults(tmp_path, name, data, fault):
    with pytest.raises(ConfigError, match=f"{fault}.*{REMEDY}"):
        sources.read_bytes(write(tmp_path / name, data))


def test_files_that_are_not_there_or_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: cannot be read: No such file"):
        sources.read_bytes(tmp_path / "nowhere")


def test_a_user_without_a_home_folder_has_no_earlier_downloads(monkeypatch):
    """As in a container that runs under a bare user number; `~` in a variable of one's own is refused by its name."""
    for variable in (sources.VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sources, "home", lambda: Path("/nonexistent"))
    place = sources.download_folder("mnist")
    assert sources.find([place], [["x"]]) == ["earlier downloads: no folder /nonexistent/.cache/jaxmgrit/mnist"]
    monkeypatch.setattr(Path, "home", lambda: Path("~").expanduser())
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert home() == Path("/nonexistent")
    monkeypatch.setenv(sources.VARIABLE, "~nobody-of-this-name/data")
    with pytest.raises(ConfigError, match=f"{sources.VARIABLE} = '~nobody.*Write the path in full"):
        sources.data_folder("mnist")


def test_arrays_of_npy_npz_and_mat_files(tmp_path):
    x = np.arange(6).reshape(2, 3)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x, other=x + 1)
    io.savemat(tmp_path / "x.mat", {"x": x, "other": x + 1})
    for name in ("x.npy", "x.npz", "x.mat"):
        np.testing.assert_array_equal(sources.read_array(tmp_path / name, "x"), x)
    for name in ("x.npz", "x.mat"):
        with pytest.raises(ConfigError, match=rf"{name}: expected an array 'cube', found .*other.*{REMEDY}"):
            sources.read_array(tmp_path / name, "cube")


@pytest.mark.parametrize("kind", ["npy", "npz", "mat"])
@pytest.mark.parametrize("left", [0, 0.3, 0.9])
def test_truncated_files_of_arrays(tmp_path, kind, left):
    path, x = tmp_path / f"x.{kind}", np.random.default_rng(0).normal(size=(40, 40))
    if kind == "mat":
        io.savemat(path, {"x": x})
    else:
        {"npy": functools.partial(np.save, arr=x), "npz": functools.partial(np.savez, x=x)}[kind](path)
    data = path.read_bytes()
    path.write_bytes(data[: int(left * len(data))])
    with pytest.raises(ConfigError, match=rf"x\.{kind}: not a valid \.{kind} file \(.*{REMEDY}"):
        sources.read_array(path, "x")


def test_pickles_are_not_loaded(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match=r"not a valid \.npy file \(Object arrays cannot be loaded"):
        sources.read_array(tmp_path / "x.npy", "x")


def test_the_first_place_that_has_all_files_and_what_is_said_of_the_others(tmp_path):
    for name in ("empty", "half", "whole"):
        (tmp_path / name).mkdir()
    write(tmp_path / "half" / "A.NPY", b"")
    for name in ("a.mat", "A.npy", "b"):
        write(tmp_path / "whole" / name, b"")
    write(tmp_path / "file", b"")
    needed = [["a.npy", "a.mat"], ["b"]]
    some = [Place("none", None, "not set"), *(Place(name, tmp_path / name) for name in ("no", "file", "empty", "half"))]
    looked = sources.find(some, needed)
    assert [line.split(": ")[0] for line in looked] == ["none", "no", "file", "empty", "half"]
    assert looked[0] == "none: not set"
    assert "no folder" in looked[1]
    assert "nothing in" in looked[3]
    assert looked[4].endswith("lacks b")
    place, files = sources.find([*some, Place("whole", tmp_path / "whole")], needed)
    assert (place.title, [file.name for file in files]) == ("whole", ["A.npy", "b"])
    assert "  half: " in str(sources.missing("x was", looked, ["pip install x"]))


def test_packages_are_found_without_being_imported():
    place = sources.package_folder("nowhere_at_all", "data")
    assert place == ("the package nowhere_at_all", None, "not installed")
    assert sources.package_folder("wsgiref", "data").folder.parent.name == "wsgiref"
    assert "wsgiref" not in sys.modules


@pytest.fixture
def server(tmp_path):
    (tmp_path / "there").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "there"))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_address[1]}", tmp_path / "there"
        served.shutdown()
        thread.join()


def test_downloads_count_only_if_they_are_what_they_should_be(server, tmp_path):
    url, folder = server
    good, bad, target = gzip.compress(b"digits"), gzip.compress(b"digits")[:-4], tmp_path / "new" / "digits.gz"
    write(folder / "digits.gz", bad)
    with pytest.raises(ConfigError, match="truncated"):
        sources.download(f"{url}/digits.gz", target, sources.read_bytes)
    assert list(target.parent.iterdir()) == []
    write(folder / "digits.gz", good)
    sources.download(f"{url}/digits.gz", target, sources.read_bytes)
    assert target.read_bytes() == good
    assert list(target.parent.iterdir()) == [target]
    with pytest.raises(ConfigError, match=r"problem\.download = True: .*none\.gz could not be fetched to .*404"):
        sources.download(f"{url}/none.gz", target.with_name("none.gz"), sources.read_bytes)


def serve_once(answer):
    """The address of a server that answers one request with these bytes and closes the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with listener, listener.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/x.gz", thread


HEADER = b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "limits", "message"),
    [
        (HEADER + b"x" * 10, {}, "the connection was lost after 10 of 1000 bytes"),
        (HEADER + b"x" * 1000, {"LARGEST": 500}, "expected at most 500 bytes, the server sends more"),
        (HEADER + b"x" * 10, {"LONGEST": -1}, "not complete after -1 seconds"),
        (b"x" * 10, {}, "BadStatusLine: xxxxxxxxxx"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nx", {}, "IncompleteRead"),
        (b"", {}, "RemoteDisconnected|ConnectionResetError"),
    ],
)
def test_broken_answers_and_too_large_or_slow_files_are_refused_by_name(tmp_path, monkeypatch, answer, limits, message):
    for name, value in limits.items():
        monkeypatch.setattr(sources, name, value)
    url, thread = serve_once(answer)
    with pytest.raises(ConfigError, match=rf"problem\.download = True: .* could not be fetched .*({message})"):
        sources.download(url, tmp_path / "x.gz", sources.read_bytes)
    thread.join()
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_is_none_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="could not be fetched .*unknown url type"):
        sources.download("no-scheme/x", tmp_path / "x.gz", sources.read_bytes)
