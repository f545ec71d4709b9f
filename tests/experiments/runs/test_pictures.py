"""Pictures of predicted classes: what they say is what was predicted."""

import numpy as np
import pytest

from experiments.problems import Data, DataSet, Picture
from experiments.runs import pictures
from experiments.runs.pictures import classes as class_pictures

NAMES = ("meadow", "wood", "lake")


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_confusion_counts_rows_by_truth_and_gives_accuracy_by_class():
    true, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0])
    axes = class_pictures.confusion(true, predicted, NAMES).axes[0]
    found = {(int(text.get_position()[1]), int(text.get_position()[0])): int(text.get_text()) for text in axes.texts}
    assert found == {(0, 0): 2, (0, 1): 1, (1, 1): 2, (2, 0): 1}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["meadow  66.7%", "wood  100.0%", "lake  0.0%"]
    assert axes.get_title() == "validation: 4 of 6 right, 66.7%"


def test_class_map_leaves_pixels_without_a_label_blank():
    picture = Picture(np.zeros((3, 1)), np.array([0, 1, 2]), np.array([0, 4, 5]), (2, 3))
    figure = class_pictures.class_map(picture, np.array([0, 2, 2]), NAMES)
    true, predicted, wrong = (axes.images[0].get_array() for axes in figure.axes[:3])
    for shown, values in ((true, [0, 1, 2]), (predicted, [0, 2, 2]), (wrong, [0, 1, 0])):
        expected = np.full(6, np.nan)
        expected[picture.pixels] = values
        np.testing.assert_array_equal(np.ma.filled(shown, np.nan), expected.reshape(2, 3))
    assert figure.axes[2].get_title() == "wrong: 33.33% of the labelled pixels"


@pytest.mark.parametrize("wrong", [0, 1, 40, 77])
def test_misclassified_images_are_those_that_are(wrong):
    images, labels = np.zeros((90, 4, 4, 1)), np.arange(90) % 3
    predicted = np.where(np.arange(90) < wrong, (labels + 1) % 3, labels)
    images[:, 0, 0, 0] = np.arange(90)
    figure = class_pictures.misclassified(DataSet(images, labels), predicted, NAMES)
    shown = [int(axes.images[0].get_array()[0, 0]) for axes in figure.axes if axes.images]
    assert len(shown) == min(wrong, 40)
    assert all(index < wrong for index in shown)
    assert shown == sorted(set(shown))
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    assert titles == [f"{NAMES[labels[i]]} as {NAMES[predicted[i]]}" for i in shown]
    assert figure.get_suptitle().startswith(f"{wrong} of 90")


def test_every_problem_gets_its_pictures(tmp_path):
    rows = [
        {"iteration": i, "residual_norm": 0.1, "adjoint_residual_norm": 0.1}
        | {
            f"{kind}_{what}": 0.5
            for kind in ("inexact", "exact_train", "exact_validation")
            for what in ("loss", "accuracy")
        }
        for i in range(3)
    ]
    digits = DataSet(np.random.default_rng(0).normal(size=(9, 4, 4, 1)), np.arange(9) % 3)
    pixels = Picture(np.zeros((3, 1)), np.array([0, 1, 2]), np.array([0, 4, 5]), (2, 3))
    for name, data in (
        ("digits", Data(digits, digits, NAMES, "", "")),
        ("pixels", Data(DataSet(pixels.x, pixels.y), DataSet(pixels.x, pixels.y), NAMES, "", "", pixels)),
    ):
        (tmp_path / name).mkdir()
        pictures.draw(tmp_path / name, rows, data, lambda x: np.zeros(len(x), int))
    made = {folder: {file.stem for file in (tmp_path / folder).iterdir()} for folder in ("digits", "pixels")}
    assert made["digits"] == {"confusion", "misclassified", "residuals", "training"}
    assert made["pixels"] == {"class_map", "confusion", "residuals", "training"}


def test_residuals_that_are_not_recorded_have_no_line():
    rows = [{"iteration": i, "residual_norm": 0.1, "adjoint_residual_norm": None} for i in range(3)]
    axes = pictures.residuals(rows).axes[0]
    assert [line.get_label() for line in axes.lines] == ["state"]
