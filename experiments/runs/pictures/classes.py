"""Pictures of predicted classes: maps beside the truth, confusion matrices, misclassified images."""

from typing import Any

import numpy as np

from experiments.foundation.drawing import Axes, Figure, ListedColormap, Patch, colormaps
from experiments.problems import DataSet, Picture

ORDERED = ["#26456e", "#5b93c5", "#e9e3d3", "#eb9a5c", "#a3341f"]  # for few classes that have an order
DISTINCT = [  # for up to 16 classes without one: any two differ by at least 25 in CIE L*a*b*
    "#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6",
    "#bfef45", "#800000", "#469990", "#c9a6ff", "#9a6324", "#808000", "#000075", "#f4a9b8",
]  # fmt: skip
BLANK, RIGHT, WRONG = "#ffffff", "#dfe2e6", "#f0a39b"
RIGHT_VALIDATION, WRONG_VALIDATION = "#9aa3ad", "#a3140f"
WRONG_ALONE = "#b3261e"
SHOWN = 40  # misclassified images


def class_map(picture: Picture, predicted: np.ndarray, names: tuple[str, ...]) -> Figure:
    """The predicted classes of a picture's pixels beside the true ones, and where they differ.

    Args:
        picture: The picture.
        predicted: Classes of its points, (points,).
        names: The classes' names.
    """
    plane = picture.extent is not None
    figure = Figure(figsize=(11.5, 5.0 if plane else 5.5), layout="compressed" if plane else "constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    # Half a class beyond both ends, so that ticks at whole numbers are in the middle of their colours.
    colours = class_colours(len(names))
    scale = {"cmap": ListedColormap(colours), "vmin": -0.5, "vmax": len(names) - 0.5}
    wrong = predicted != picture.y
    share = f"wrong: {wrong.mean():.2%} of the {'grid points' if plane else 'labelled pixels'}"
    of_classes = _map(panels[0], picture, picture.y, "true classes", scale)
    _map(panels[1], picture, predicted, "predicted classes (exact evaluation)", scale)
    says = [f"class-balanced accuracy {_balanced(picture.y, wrong):.2%}"]
    if picture.validation is None:
        shades = {"cmap": ListedColormap([RIGHT, WRONG_ALONE]), "vmin": 0, "vmax": 1}
        _map(panels[2], picture, wrong, share, shades)
    else:
        own = picture.validation
        kinds = {"right": RIGHT, "wrong": WRONG, "right, validation": RIGHT_VALIDATION}
        kinds["wrong, validation"] = WRONG_VALIDATION
        shades = {"cmap": ListedColormap(list(kinds.values())), "vmin": 0, "vmax": 3}
        _map(panels[2], picture, wrong + 2 * own, share, shades)
        _legend(figure, kinds, loc="outside lower right")
        balanced = _balanced(picture.y[own], wrong[own])
        says.append(f"validation: wrong {wrong[own].mean():.2%}, class-balanced accuracy {balanced:.2%}")
    panels[2].set_xlabel(("$x_1$\n" if plane else "") + "\n".join(says), fontsize=9)
    if plane:
        panels[0].set_ylabel("$x_2$")
        bar = figure.colorbar(of_classes, ax=panels, location="bottom", ticks=range(len(names)), aspect=60, shrink=0.9)
        bar.ax.set_xticklabels(names)
        bar.set_label("class")
    else:
        _legend(figure, dict(zip(names, colours, strict=True)), loc="outside lower left", ncols=-(-len(names) // 4))
    return figure


def class_colours(count: int) -> list[Any]:
    """Colours of so many classes: in order for five, else as different as they can be."""
    if count == len(ORDERED):
        return ORDERED
    return DISTINCT[:count] if count <= len(DISTINCT) else list(colormaps["turbo"](np.linspace(0, 1, count)))


def _map(axes: Axes, picture: Picture, values: np.ndarray, title: str, colouring: dict[str, Any]) -> Any:
    """Draw one value per point; its image."""
    pixels = np.full(picture.shape, np.nan)
    pixels.flat[picture.pixels] = values
    axes.set_facecolor(BLANK)
    axes.set_title(title)
    if picture.extent is None:
        axes.set(xticks=[], yticks=[])
        return axes.imshow(pixels, origin="upper", interpolation="nearest", **colouring)
    axes.set_xlabel("$x_1$")
    return axes.imshow(pixels, origin="lower", extent=picture.extent, interpolation="nearest", **colouring)


def _legend(place: Any, colours: dict[str, Any], **where: Any) -> None:
    """Name colours, in a figure or axes."""
    handles = [Patch(facecolor=colour, edgecolor="0.5", linewidth=0.5, label=name) for name, colour in colours.items()]
    place.legend(handles=handles, frameon=False, fontsize=9, handlelength=1.2, handleheight=1.0, **where)


def _balanced(true: np.ndarray, wrong: np.ndarray) -> float:
    """The mean over the classes' own accuracies: rare ones hardly count in the error rate."""
    return float(np.mean([1 - wrong[true == k].mean() for k in np.unique(true)]))


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
