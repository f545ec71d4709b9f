"""Indian Pines: the published split, an own one, the scaling, and the faults of files."""

import numpy as np
import pytest
from scipy import io

from experiments.config.schema import IndianPines
from experiments.errors import ConfigError
from experiments.problems import indian_pines, sources

BANDS = 220  # of the stand-in, of which no checksum is known


def section(**keys):
    return IndianPines(name="indian_pines", **keys)


def truth():
    """A ground truth with as many pixels of each class as the true one."""
    labels = np.repeat(np.arange(17), (145 * 145 - 10249, *indian_pines.COUNTS))
    return np.random.default_rng(0).permutation(labels).reshape(145, 145).astype(np.uint8)


def image():
    """Spectra that tell row, column and class."""
    rows, columns = np.indices((145, 145))
    cube = np.zeros((145, 145, BANDS), np.float32)
    cube[..., 0], cube[..., 1], cube[..., 2], cube[..., 3:] = rows, columns, truth(), 7.0
    return cube


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pines")
    np.save(folder / "indian_pines_corrected.npy", image())
    np.save(folder / "Indian_pines_gt.npy", truth())
    return folder


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """No data but those of the test, whose labels count as the true ones."""
    monkeypatch.setattr(indian_pines, "TRUTH_CHECKSUM", sources.md5(truth().tobytes()))
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv(sources.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def unscaled(x, data):
    """Row, column and class of scaled spectra: each band is linear in them, so two known pixels give them back."""
    rows, columns = np.divmod(data.picture.pixels, 145)
    known = np.stack([rows, columns, data.picture.y + 1], axis=1).astype(float)
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    whole = data.picture.x[:, :3]
    return (x[:, :3] - whole.mean(axis=0)) / whole.std(axis=0) * deviation + mean


def test_an_own_split_is_stratified_disjoint_and_seeded(folder):
    data = indian_pines.load(section(folder=str(folder)), 0)
    assert data.train.x.shape == (4000, BANDS)
    assert data.validation.x.shape == (2000, BANDS)
    assert "stratified split" in data.facts
    assert f"{BANDS} bands" in data.facts
    assert "problem.folder" in data.source
    for part, size in ((data.train, 4000), (data.validation, 2000)):
        expected = np.array(indian_pines.COUNTS) * size / 10249
        assert np.abs(np.bincount(part.y) - expected).max() <= 1.5
        row, column, label = np.rint(unscaled(part.x, data)).astype(int).T
        np.testing.assert_array_equal(label, part.y + 1)
        np.testing.assert_array_equal(truth()[row, column], label)
    pixels = [{tuple(point) for point in np.rint(unscaled(part.x, data)[:, :2])} for part in data[:2]]
    assert not pixels[0] & pixels[1]
    assert len(pixels[0]) == 4000
    other = indian_pines.load(section(folder=str(folder)), 1)
    assert not np.array_equal(other.train.y, data.train.y)


def test_bands_are_scaled_by_the_training_pixels_alone(folder):
    data = indian_pines.load(section(folder=str(folder)), 0)
    np.testing.assert_allclose(data.train.x[:, :3].mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(data.train.x[:, :3].std(axis=0), 1, atol=1e-12)
    assert np.abs(data.validation.x[:, :3].mean(axis=0)).max() > 1e-4
    assert (data.picture.x[:, 3:] == 0).all()  # constant bands


def test_the_published_split_counts_labelled_pixels_by_columns(folder, tmp_path, monkeypatch):
    order = np.random.default_rng(1).permutation(10249)
    home = tmp_path / "indian_pines"
    home.mkdir()
    np.savez(home / "split.npz", train=order[:4000], validation=order[4000:6000])
    monkeypatch.setenv(sources.VARIABLE, str(tmp_path))
    data = indian_pines.load(section(folder=str(folder)), 0)
    assert f"own, unverified, of {home / 'split.npz'} split" in data.facts
    both = sources.md5(order[:6000].astype("<u2").tobytes())
    monkeypatch.setattr(indian_pines, "SPLIT_CHECKSUM", both)
    assert "published split" in indian_pines.load(section(folder=str(folder)), 0).facts
    cube, labels = image().transpose(1, 0, 2)[truth().T > 0], truth().T[truth().T > 0]
    np.testing.assert_array_equal(data.train.y, labels[order[:4000]] - 1)
    expected = cube[order[4000:6000], :3]
    np.testing.assert_allclose(unscaled(data.validation.x, data), expected, atol=1e-3)
    assert "stratified" in indian_pines.load(section(folder=str(folder), split="stratified"), 0).facts


def test_without_data_it_is_said_where_they_were_looked_for_and_how_to_get_them(tmp_path):
    with pytest.raises(ConfigError) as error:
        indian_pines.load(section(), 0)
    for line in (
        "the image and its ground truth were not found. Looked in:",
        "JAXMGRIT_DATA is not set",
        f"earlier downloads: no folder {tmp_path}/jaxmgrit/indian_pines",
        "the package tensorly: not installed",
        "pip install tensorly",
        "--problem.download true",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"split": "published"}, r"(?s)problem\.split = 'published': split\.npz was not found.*--problem\.split strat"),
        (
            {"train_points": 9000},
            r"problem\.train_points = 9000: expected at most 10249 pixels together with .*_points = 2000",
        ),
        ({"train_points": 30}, r"problem\.train_points = 30: expected points of every class, .* Oats.*Take more"),
    ],
)
def test_splits_that_cannot_be(folder, keys, message):
    with pytest.raises(ConfigError, match=message):
        indian_pines.load(section(folder=str(folder), **keys), 0)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"train": np.arange(5)}, "expected an array 'validation', found train"),
        ({"train": np.arange(5), "validation": np.arange(4, 8)}, "expected every pixel once"),
        (
            {"train": np.arange(5), "validation": np.array([10249])},
            "expected indices from 0 to 10248, found 0 to 10249",
        ),
        ({"train": np.arange(5), "validation": np.array([0.5])}, "expected indices .* found 'validation': float64"),
        ({"train": np.array(["a"]), "validation": np.arange(5)}, "expected indices .* found 'train': <U1"),
        ({"train": np.arange(0), "validation": np.arange(5)}, r"found 'train': int64 of \(0,\)"),
        ({"train": np.arange(9), "validation": np.arange(9, 20)}, "there are none of"),
    ],
)
def test_splits_with_faults(folder, tmp_path, monkeypatch, split, message):
    home = tmp_path / "indian_pines"
    home.mkdir()
    np.savez(home / "split.npz", **split)
    monkeypatch.setenv(sources.VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        indian_pines.load(section(folder=str(folder)), 0)


@pytest.mark.parametrize(
    ("read", "values", "message"),
    [
        (
            indian_pines.read_image,
            np.zeros((145, 145, 199)),
            r"expected shape \(145, 145, 200\) or .*\(145, 145, 199\)",
        ),
        (indian_pines.read_image, np.full((145, 145, 220), np.nan), "expected finite numbers"),
        (indian_pines.read_image, np.zeros((145, 145, 200), np.uint16), r"expected checksum \(md5\) 03f180fa"),
        (indian_pines.read_image, np.full((145, 145, 200), 1.5), "expected integers from 0 to 65535, found others"),
        (indian_pines.read_truth, np.zeros((145, 144), int), r"expected integers of shape \(145, 145\)"),
        (indian_pines.read_truth, np.full((145, 145), 17), "expected labels from 0 to 16, found 17 to 17"),
        (indian_pines.read_truth, np.ones((145, 145), int), r"expected pixels of the classes \(46, 1428"),
    ],
)
def test_files_with_faults(tmp_path, read, values, message):
    path = tmp_path / "Indian_pines_corrected.npy"
    np.save(path, values)
    with pytest.raises(ConfigError, match=rf"Indian_pines_corrected\.npy: {message}"):
        read(path)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (np.transpose, ", which it is with rows and columns exchanged"),
        (np.flipud, ""),
        (lambda labels: np.random.default_rng(1).permutation(labels.ravel()).reshape(labels.shape), ""),
        (lambda labels: np.roll(labels, 1), ""),
    ],
)
def test_labels_on_other_pixels_are_refused(tmp_path, change, hint):
    np.save(tmp_path / "gt.npy", change(truth()))
    with pytest.raises(
        ConfigError, match=rf"gt\.npy: expected checksum \(md5\) .* found [0-9a-f]{{32}}{hint}\. Remove"
    ):
        indian_pines.read_truth(tmp_path / "gt.npy")


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64])
def test_labels_of_any_type_that_holds_them_are_taken(tmp_path, dtype):
    np.save(tmp_path / "gt.npy", truth().astype(dtype))
    np.testing.assert_array_equal(indian_pines.read_truth(tmp_path / "gt.npy"), truth())


def test_an_image_that_cannot_be_verified_is_said_to_be(folder):
    assert (
        f"{BANDS} bands (unverified: no checksum is known of it)"
        in indian_pines.load(section(folder=str(folder)), 0).facts
    )


def test_a_mat_file_without_the_array(tmp_path):
    io.savemat(tmp_path / "Indian_pines_gt.mat", {"labels": truth()})
    with pytest.raises(ConfigError, match=r"Indian_pines_gt\.mat: expected an array 'indian_pines_gt', found labels"):
        indian_pines.read_truth(tmp_path / "Indian_pines_gt.mat")
    io.savemat(tmp_path / "Indian_pines_gt.mat", {"indian_pines_gt": truth()})
    np.testing.assert_array_equal(indian_pines.read_truth(tmp_path / "Indian_pines_gt.mat"), truth())


def test_downloads_are_asked_for_and_checked(folder, tmp_path, monkeypatch):
    server = tmp_path / "server"
    server.mkdir()
    io.savemat(server / "Indian_pines_corrected.mat", {"indian_pines_corrected": image()})
    io.savemat(server / "Indian_pines_gt.mat", {"indian_pines_gt": truth()})
    monkeypatch.setattr(indian_pines, "URLS", {name: (server / name).as_uri() for name in indian_pines.URLS})
    data = indian_pines.load(section(download=True), 0)
    np.testing.assert_array_equal(data.train.x, indian_pines.load(section(folder=str(folder)), 0).train.x)
    assert "earlier downloads" in indian_pines.load(section(), 0).source


def test_the_packaged_image_and_the_published_split(monkeypatch):
    monkeypatch.undo()
    if sources.package_folder("tensorly").folder is None:
        pytest.skip("tensorly is not installed")
    found = sources.find([sources.data_folder("indian_pines")], [["split.npz"]])
    if isinstance(found, list):
        pytest.skip(f"no published split: {found[0]}")
    data = indian_pines.load(section(), 0)
    assert (len(data.train.y), len(data.validation.y), data.train.x.shape[1]) == (4000, 2000, 200)
    assert np.bincount(data.train.y)[[0, 6, 8]].tolist() == [21, 10, 4]
