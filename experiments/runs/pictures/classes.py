"""Pictures of predicted classes: maps beside the truth, confusion matrices, misclassified images."""

import numpy as np

from experiments.foundation.drawing import Figure, ListedColormap, colormaps
from experiments.problems import DataSet, Picture

ORDERED = ["#26456e", "#5b93c5", "#e9e3d3", "#eb9a5c", "#a3341f"]  # for few classes that have an order
BLANK, RIGHT, WRONG = "#ffffff", "#d9dde2", "#b3261e"
SHOWN = 40  # misclassified images


def class_map(picture: Picture, predicted: np.ndarray, names: tuple[str, ...]) -> Figure:
    """The predicted classes of a picture's pixels beside the true ones, and where they differ.

    Args:
        picture: The picture.
        predicted: Classes of its points, (points,).
        names: The classes' names.
    """
    wrong = predicted != picture.y
    colours = ORDERED if len(names) == len(ORDERED) else list(colormaps["tab20"].colors)  # type: ignore[attr-defined]
    figure = Figure(figsize=(11.5, 4.2 if len(names) == len(ORDERED) else 4.9), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    # Half a class beyond both ends, so that ticks at whole numbers are in the middle of their colours.
    scale = {"cmap": ListedColormap(colours[: len(names)]), "vmin": -0.5, "vmax": len(names) - 0.5}
    errors = {"cmap": ListedColormap([RIGHT, WRONG]), "vmin": 0, "vmax": 1}
    plane = picture.extent is not None
    # Rare classes hardly count in the error rate, so the mean over the classes' own accuracies stands beside it.
    balanced = np.mean([1 - wrong[picture.y == k].mean() for k in np.unique(picture.y)])
    share = f"wrong: {wrong.mean():.2%} of the {'grid points' if plane else 'labelled pixels'}"
    for axes, title, values, colouring in zip(
        panels,
        ("true classes", "predicted classes (exact evaluation)", share),
        (picture.y, predicted, wrong),
        (scale, scale, errors),
        strict=True,
    ):
        pixels = np.full(picture.shape, np.nan)
        pixels.flat[picture.pixels] = values
        axes.set_facecolor(BLANK)
        origin = "lower" if plane else "upper"
        image = axes.imshow(pixels, origin=origin, extent=picture.extent, interpolation="nearest", **colouring)
        axes.set_title(title)
        if plane:
            axes.set_xlabel("$x_1$")
        else:
            axes.set(xticks=[], yticks=[])
        if title == "true classes":
            of_classes = image
    panels[2].set_xlabel(("$x_1$\n" if plane else "") + f"class-balanced accuracy {balanced:.2%}")
    if plane:
        panels[0].set_ylabel("$x_2$")
    bar = figure.colorbar(of_classes, ax=panels, location="bottom", ticks=range(len(names)), aspect=60, shrink=0.9)
    bar.ax.set_xticklabels(
        names, rotation=35 if len(names) > len(ORDERED) else 0, ha="right" if len(names) > 5 else "center"
    )
    return figure


def confusion(true: np.ndarray, predicted: np.ndarray, names: tuple[str, ...]) -> Figure:
    """How many validation points of each class were taken for which, and the accuracy of each class.

    Args:
        true: Classes, (points,).
        predicted: Likewise.
        names: The classes' names.
    """
    classes = len(names)
    counts = np.zeros((classes, classes), int)
    # With `+= 1` a pair of classes that occurs repeatedly would count once.
    np.add.at(counts, (true, predicted), 1)
    sizes = counts.sum(axis=1)
    # A class without validation points has an empty row rather than nan.
    shares = counts / np.maximum(sizes, 1)[:, None]
    side = 3.2 + 0.42 * classes
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, counts[row, column], ha="center", va="center", color=colour, fontsize=8)
    labels = [f"{name}  {share:.1%}" for name, share in zip(names, shares.diagonal(), strict=True)]
    axes.set_xticks(range(classes), names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(classes), labels)
    axes.set(xlabel="predicted class", ylabel="true class, and the share that is right")
    right = counts.trace()
    axes.set_title(f"validation: {right} of {len(true)} right, {right / len(true):.1%}")
    figure.colorbar(image, shrink=0.7, label="share of the true class")
    return figure


def misclassified(data: DataSet, predicted: np.ndarray, names: tuple[str, ...]) -> Figure:
    """Images that the network takes for another class: at most 40, spread over all of them.

    Args:
        data: Images (points, height, width, channels), and their classes.
        predicted: Classes, (points,).
        names: The classes' names.
    """
    wrong = np.flatnonzero(predicted != data.y)
    shown = wrong[np.unique(np.linspace(0, len(wrong) - 1, min(SHOWN, len(wrong))).astype(int))]
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    figure.suptitle(f"{len(wrong)} of {len(data.y)} validation images are misclassified; {len(shown)} of them")
    for axes, index in zip(figure.subplots(4, 10).flat, [*shown, *[None] * (SHOWN - len(shown))], strict=True):
        axes.axis("off")
        if index is not None:
            axes.imshow(data.x[index, :, :, 0], cmap="gray_r")
            axes.set_title(f"{names[data.y[index]]} as {names[predicted[index]]}", fontsize=9, pad=2)
    return figure
