"""Indian Pines: land cover of pixels from their spectra (Baumgardner, Biehl, Landgrebe 2015, doi:10.4231/R7RX991C).

An image of 145 x 145 pixels by the AVIRIS instrument, 10249 of them labelled by 16 classes. The corrected image has 200
bands, those of water absorption being removed; the full one has 220. Both are taken.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from experiments.errors import ConfigError
from experiments.foundation.files import expanded
from experiments.foundation.section import FolderName, Section
from experiments.problems import sources
from experiments.problems.data import Data, DataSet, Picture, check_classes, stratified
from experiments.problems.sources import Place

NAMES = (
    "Alfalfa",
    "Corn-notill",
    "Corn-mintill",
    "Corn",
    "Grass-pasture",
    "Grass-trees",
    "Grass-pasture-mowed",
    "Hay-windrowed",
    "Oats",
    "Soybean-notill",
    "Soybean-mintill",
    "Soybean-clean",
    "Wheat",
    "Woods",
    "Buildings-Grass-Trees-Drives",
    "Stone-Steel-Towers",
)
COUNTS = (46, 1428, 830, 237, 483, 730, 28, 478, 20, 972, 2455, 593, 205, 1265, 386, 93)
SIDE, BANDS = 145, (200, 220)
# md5 of the values row by row: of the corrected image as little-endian uint16, of the labels as uint8, of the published
# split's training and then validation indices as little-endian uint16.
IMAGE_CHECKSUM = "03f180faa493976fd8bf15d8fc9bee46"
TRUTH_CHECKSUM = "65302d8ec0258a3a01d4236aae41e706"
SPLIT_CHECKSUM = "9b1f32dfbf8a756609b8b2d707d0f9a3"
IMAGES = ("Indian_pines_corrected.npy", "Indian_pines_corrected.mat", "Indian_pines.mat")
TRUTHS = ("Indian_pines_gt.npy", "Indian_pines_gt.mat")
UNVERIFIED = " (unverified: no checksum is known of it)"
URLS = {
    "Indian_pines_corrected.mat": "https://www.ehu.eus/ccwintco/uploads/6/67/Indian_pines_corrected.mat",
    "Indian_pines_gt.mat": "https://www.ehu.eus/ccwintco/uploads/c/c4/Indian_pines_gt.mat",
}


class IndianPines(Section):
    """Land cover of the pixels of a hyperspectral image, from their spectra."""

    name: Literal["indian_pines"]
    folder: FolderName | None = Field(
        default=None,
        description="where the image, the ground truth and the published split are; null: the usual places",
    )
    download: bool = Field(default=False, description="fetch what is nowhere found")
    split: Literal["published", "stratified"] | None = Field(
        default=None,
        description="which pixels are trained on; null: published where its file is found, else stratified",
    )
    train_points: int = Field(default=4000, ge=1, le=10_249, description="training pixels of the stratified split")
    validation_points: int = Field(default=2000, ge=1, le=10_249, description="its validation pixels, disjoint")


def load(section: IndianPines, seed: int) -> Data:
    """Load the labelled pixels, split them, and scale each band by the training pixels' mean and standard deviation.

    Args:
        section: Where to look, and which split.
        seed: Of the stratified split; the published one has no choice.

    Raises:
        ConfigError: Data that cannot be found, read or split as asked.
    """
    place, (image_file, truth_file) = _files(section)
    image, truth = read_image(image_file), read_truth(truth_file)
    # The published split counts the labelled pixels column by column.
    spectra, labels = image.transpose(1, 0, 2)[truth.T > 0].astype(np.float64), truth.T[truth.T > 0] - 1
    train, validation, split = _split(section, labels, seed)
    mean, deviation = spectra[train].mean(axis=0), spectra[train].std(axis=0)

    def prepare(x: np.ndarray) -> np.ndarray:
        return (x - mean) / np.where(deviation > 0, deviation, 1.0)

    scaled = prepare(spectra)
    column, row = np.nonzero(truth.T)
    return Data(
        DataSet(scaled[train], labels[train]),
        DataSet(scaled[validation], labels[validation]),
        NAMES,
        f"{len(train)} training and {len(validation)} validation pixels of {len(labels)} ({split} split), "
        f"{image.shape[2]} bands{UNVERIFIED if image.shape[2] != BANDS[0] else ''}, each less the training pixels' "
        "mean, over their standard deviation",
        f"{image_file} and {truth_file.name} ({place.title})",
        Picture(
            scaled,
            labels,
            row * SIDE + column,
            (SIDE, SIDE),
            validation=np.isin(np.arange(len(labels)), validation),
        ),
        prepare=prepare,
    )


def _files(section: IndianPines) -> tuple[Place, list[Path]]:
    """The image's and the ground truth's files, downloaded if need be and asked for."""
    own = sources.download_folder("indian_pines")
    if section.folder is not None:
        own = Place("problem.folder", expanded(section.folder, "problem.folder"))
    places = [
        sources.data_folder("indian_pines"),
        own,
        sources.package_folder("tensorly", "datasets", "data"),
    ]
    located = sources.find([own] if section.folder is not None else places, [IMAGES, TRUTHS])
    if isinstance(located, list) and section.download:
        assert own.folder is not None
        checks = zip(URLS.items(), (read_image, read_truth), strict=True)
        for (name, url), check in checks:
            sources.download(url, own.folder / name, check)
        located = sources.find([own], [IMAGES, TRUTHS])
    if isinstance(located, list):
        raise sources.missing(
            "problem.name = 'indian_pines': the image and its ground truth were",
            located,
            [
                "pip install tensorly        (ships both)",
                "--problem.download true     (6 MB, two .mat files)",
                f"--problem.folder FOLDER     with {IMAGES[0]} or {IMAGES[1]}, and {TRUTHS[0]} or .mat",
                f"export {sources.VARIABLE}=FOLDER  with these files in FOLDER/indian_pines",
            ],
        )
    return located


def read_image(path: Path) -> np.ndarray:
    """The image, verified by its checksum if it is the corrected one.

    Returns:
        (145, 145, bands) finite numbers, with 200 bands (corrected) or 220 (no checksum is known).

    Raises:
        ConfigError: A file that holds something else.
    """
    image = sources.read_array(path, "indian_pines_corrected" if "corrected" in path.name.lower() else "indian_pines")
    if image.ndim != 3 or image.shape[:2] != (SIDE, SIDE) or image.shape[2] not in BANDS:
        raise sources.corrupt(path, f"expected shape (145, 145, 200) or (145, 145, 220), found {image.shape}")
    if image.dtype.kind not in "uif" or not np.isfinite(image).all():
        raise sources.corrupt(path, f"expected finite numbers, found {image.dtype} with others")
    if image.shape[2] == BANDS[0]:
        _verify(path, image, "<u2", IMAGE_CHECKSUM)
    return image


def read_truth(path: Path) -> np.ndarray:
    """The ground truth, verified by its checksum.

    Returns:
        (145, 145) int32, 0 where there is no label, else 1 to 16.

    Raises:
        ConfigError: A file that holds something else.
    """
    truth = sources.whole(sources.read_array(path, "indian_pines_gt"))
    if truth.shape != (SIDE, SIDE) or truth.dtype.kind not in "ui":
        raise sources.corrupt(path, f"expected integers of shape (145, 145), found {truth.dtype} of {truth.shape}")
    if truth.min() < 0 or truth.max() > len(NAMES):
        raise sources.corrupt(path, f"expected labels from 0 to 16, found {truth.min()} to {truth.max()}")
    counts = tuple(np.bincount(truth.ravel(), minlength=len(NAMES) + 1)[1:].tolist())
    if counts != COUNTS:
        raise sources.corrupt(path, f"expected pixels of the classes {COUNTS}, found {counts}")
    _verify(path, truth, "u1", TRUTH_CHECKSUM)
    return truth.astype(np.int32)


def _verify(path: Path, values: np.ndarray, dtype: str, checksum: str) -> None:
    """Raise a ConfigError unless values, row by row in a dtype that can hold them, have a checksum."""
    converted = np.clip(values, 0, np.iinfo(dtype).max).astype(dtype)  # so that no number wraps around
    if not np.array_equal(converted, values):
        raise sources.corrupt(path, f"expected integers from 0 to {np.iinfo(dtype).max}, found others")
    if (own := sources.md5(converted.tobytes())) != checksum:
        turned = sources.md5(np.swapaxes(converted, 0, 1).tobytes()) == checksum
        hint = ", which it is with rows and columns exchanged" if turned else ""
        raise sources.corrupt(
            path, f"expected checksum (md5) {checksum} of the values as {np.dtype(dtype)}, found {own}{hint}"
        )


def _split(section: IndianPines, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Training and validation pixels, and which split it is."""
    places = [sources.data_folder("indian_pines")]
    if section.folder is not None:
        places.insert(0, Place("problem.folder", expanded(section.folder, "problem.folder")))
    located = sources.find(places, [["split.npz"]])
    if section.split == "published" and isinstance(located, list):
        raise sources.missing(
            "problem.split = 'published': split.npz was",
            located,
            [
                "--problem.split stratified  (a random one, own to each seed)",
                "the split's file, put into such a folder",
            ],
        )
    if section.split != "stratified" and not isinstance(located, list):
        train, validation = read_split(located[1][0], len(labels))
        both = np.concatenate([train, validation]).astype("<u2")
        key, name = "problem.split = 'published'", "published"
        if sources.md5(both.tobytes()) != SPLIT_CHECKSUM:
            name = f"own, unverified, of {located[1][0]}"
        remedy = "Use --problem.split stratified."
    else:
        asked = section.train_points + section.validation_points
        if asked > len(labels):
            raise ConfigError(
                f"problem.train_points = {section.train_points}: expected at most {len(labels)} pixels together with "
                f"problem.validation_points = {section.validation_points}. Take fewer of either."
            )
        # Validation first: its points stay the same whatever problem.train_points is.
        sizes = section.validation_points, section.train_points
        validation, train = stratified(labels, sizes, np.random.default_rng(seed))
        key, name = f"problem.train_points = {section.train_points}", "stratified"
        remedy = "Take more points."
    check_classes(NAMES, labels[train], key, remedy)
    return train, validation, name


def read_split(path: Path, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and validation pixels.

    Raises:
        ConfigError: A file that holds something else.
    """
    train, validation = (sources.whole(sources.read_array(path, name)) for name in ("train", "validation"))
    for name, part in (("train", train), ("validation", validation)):
        if part.ndim != 1 or part.dtype.kind not in "ui" or part.size == 0:
            raise sources.corrupt(
                path, f"expected indices along one axis, found '{name}': {part.dtype} of {part.shape}"
            )
    both = np.concatenate([train.astype(np.int64), validation.astype(np.int64)])
    if both.min() < 0 or both.max() >= points:
        raise sources.corrupt(path, f"expected indices from 0 to {points - 1}, found {both.min()} to {both.max()}")
    if len(np.unique(both)) != len(both):
        raise sources.corrupt(path, "expected every pixel once, but some are in it twice")
    return both[: len(train)], both[len(train) :]
