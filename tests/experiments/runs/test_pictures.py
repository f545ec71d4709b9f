"""Pictures of predicted classes: what they say is what was predicted."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from experiments.problems import Data, DataSet, Picture
from experiments.runs import pictures
from experiments.runs.pictures import classes as class_pictures

NAMES = ("meadow", "wood", "lake")


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_values_that_were_lost_or_never_finite_are_left_out():
    """A run that cannot be drawn in full is drawn in part: what matters of it is on disk by then."""
    row = {"inexact_loss": 0.5, "inexact_accuracy": 0.5, "exact_train_loss": None, "exact_validation_loss": None}
    figure = pictures.training([{"iteration": i, "seconds": 1.0 + i, **row} for i in range(3)])
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [3, 0, 0]
    judged = pictures.Judged([{"iteration": 1, "distance": "far"}, {"iteration": 2, "distance": 0.5}], 0.05)
    (axes,) = pictures.residuals([{"iteration": i, "mismatch": 0.1} for i in range(3)], judged).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.1, 0.1, 0.1], [0.5]]


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


def test_the_validation_pixels_of_a_map_are_told_apart_and_judged_by_themselves():
    own = np.array([True, True, False, False, True])
    picture = Picture(np.zeros((5, 1)), np.array([0, 0, 1, 2, 2]), np.arange(5), (1, 5), validation=own)
    figure = class_pictures.class_map(picture, np.array([0, 1, 1, 1, 2]), NAMES)
    axes = figure.axes[2]
    np.testing.assert_array_equal(np.ravel(axes.images[0].get_array()), [2, 3, 0, 1, 2])  # wrong + 2 validation
    assert axes.get_title() == "wrong: 40.00% of the labelled pixels"
    assert axes.get_xlabel().splitlines() == [
        "class-balanced accuracy 66.67%",  # (1/2 + 1 + 1/2) / 3
        "validation: wrong 33.33%, class-balanced accuracy 75.00%",  # classes 0 and 2 alone: (1/2 + 1) / 2
    ]
    kinds, classes = ([text.get_text() for text in legend.get_texts()] for legend in figure.legends)
    assert kinds == ["right", "wrong", "right, validation", "wrong, validation"]
    assert classes == list(NAMES)


def _lab(colour):
    """CIE L*a*b* of a colour of sRGB, white D65."""
    c = np.array(to_rgb(colour))
    c = np.where(c > 0.04045, ((c + 0.055) / 1.055) ** 2.4, c / 12.92)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ c / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("count", [2, 5, 10, 16])
def test_classes_have_colours_that_can_be_told_apart(count):
    colours = [*class_pictures.class_colours(count), class_pictures.BLANK]
    apart = [np.linalg.norm(_lab(a) - _lab(b)) for a, b in itertools.combinations(colours, 2)]
    assert len(colours) == count + 1 and min(apart) > (25 if count != 5 else 10)


def curve_rows(layers=(8,) * 30, **more):
    quantities = [f"{k}_{q}" for k in ("inexact", "exact_train", "exact_validation") for q in ("loss", "accuracy")]
    return [
        {"iteration": i, "seconds": 10.0 + i, "layers": n, "residual_norm": 1.0, **dict.fromkeys(quantities, 0.5)}
        | {key: value(i) for key, value in more.items()}
        for i, n in enumerate(layers)
    ]


def test_training_is_drawn_over_iterations_and_seconds_with_the_switches_of_nested_iteration():
    figure = pictures.training(curve_rows((4,) * 10 + (8,) * 10 + (16,) * 10))
    (over_iterations, over_seconds), xs = figure.axes[:2], {}
    for axes in (over_iterations, over_seconds):
        xs[axes] = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        assert [text.get_text().strip() for text in axes.texts] == ["8 layers", "16 layers"]
    assert xs[over_iterations] == [10, 20]
    # A second each, but for the first iteration of every network, which compiles.
    assert xs[over_seconds] == [9.0, 18.0]
    assert "seconds" in figure.axes[3].get_xlabel()


def test_a_noisy_curve_stays_in_sight_behind_its_mean():
    rows = curve_rows((8,) * 200, inexact_loss=lambda i: 1.0 + (-1) ** i)
    behind, mean = pictures.training(rows).axes[0].lines[:2]
    np.testing.assert_array_equal(behind.get_ydata()[:4], [2.0, 0.0, 2.0, 0.0])
    assert mean.get_ydata()[0] == 2.0 and np.abs(mean.get_ydata()[20:-20] - 1.0).max() < 0.1
    assert "mean of 10 iterations" in mean.get_label()


def test_smoothing_keeps_lines_and_the_ends():
    line = np.arange(200.0)
    rows = curve_rows((8,) * 200, inexact_loss=lambda i: 1.0 + i)
    mean = pictures.training(rows).axes[0].lines[1]
    np.testing.assert_allclose(mean.get_ydata(), 1.0 + line)


def test_the_iterations_are_spaced_logarithmically_where_exact_evaluations_are():
    rows = curve_rows((8,) * 60)
    assert pictures.training(rows).axes[2].get_xscale() == "linear"
    for i, row in enumerate(rows):
        if i not in (0, 1, 2, 5, 10, 20, 50, 59):
            row["exact_train_loss"] = None
    assert pictures.training(rows).axes[2].get_xscale() == "symlog"


def test_residuals_are_relative_beside_the_error_of_gradients_and_a_band_of_what_is_fine():
    rows = curve_rows(mismatch=lambda i: 0.1 / (i + 1), gradient_error=lambda i: 0.02 if i in (5, 10) else None)
    judged = pictures.Judged([{"iteration": 7, "distance": 0.3}, {"iteration": 8, "action": "warning"}], 0.05)
    axes = pictures.residuals(rows, judged).axes[0]
    residual, error = axes.lines
    np.testing.assert_allclose(residual.get_ydata(), 0.1 / np.arange(1, 31))
    assert list(zip(*error.get_data(), strict=True)) == [(5, 0.02), (7, 0.3), (10, 0.02)]
    assert [patch.get_y() + patch.get_height() for patch in axes.patches] == pytest.approx([0.05])
    assert "off by 5% at most" in axes.texts[0].get_text()


def test_residuals_that_are_not_recorded_have_no_line():
    rows = [{"iteration": i, "residual_norm": 0.1, "adjoint_residual_norm": None} for i in range(3)]
    axes = pictures.residuals(rows).axes[0]
    assert [line.get_label() for line in axes.lines] == ["state"]
