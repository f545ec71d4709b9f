"""Points of the user's own, from wherever: checked, their labels numbered, their inputs scaled."""

from collections.abc import Callable

import numpy as np

from experiments.errors import ConfigError
from experiments.problems.data import Data, DataSet, Scale, stratified
from experiments.problems.sources import whole

Points = tuple[np.ndarray, np.ndarray]  # inputs and labels, not yet checked
LARGEST = 1e100  # of an input or a target: sums of squares of such numbers are still finite


def data(
    train: Points,
    validation: Points | None,
    share: float,
    standardise: bool,
    where: str,
    seed: int,
    sha256: str = "",
    targets: list[str] | None = None,
) -> Data:
    """Checked points as a problem's data.

    Args:
        train: Inputs (points, features), (points, height, width) or (points, height, width, channels), and labels
            (points,), integers or texts; or numbers to be predicted, (points, targets) or (points,).
        validation: The same; None: held out of the training points.
        share: Of the training points, to be held out.
        standardise: Whether each feature less its mean is divided by its standard deviation, both over the training
            points.
        where: Where they come from, for messages.
        seed: Of the choice of what is held out.
        sha256: Of the files they come from.
        targets: Names of the numbers to be predicted, one for all or one for each; they are scaled as features are.
            None: labels are classes.

    Raises:
        ConfigError: Arrays that are no such points; the message says which and why.
    """
    sets = [_checked(*train, where, targets)]
    if validation is not None:
        sets.append(_checked(*validation, f"validation points of {where}", targets))
        for kind, of_both in zip(("inputs", "targets"), zip(*sets, strict=True), strict=True):
            if of_both[0].shape[1:] != of_both[1].shape[1:]:
                raise ConfigError(
                    f"{where}: expected validation {kind} of shape {of_both[0].shape[1:]}, as the training {kind}, "
                    f"found {of_both[1].shape[1:]}."
                )
    if targets is None:
        names, sets = _numbered(sets, where)
    else:
        names = _named(targets, sets[0][1].shape[1])
    if validation is None:
        (x, y), sizes, random = sets[0], _sizes(len(sets[0][1]), share), np.random.default_rng(seed)
        mixed = np.split(random.permutation(len(y)), sizes[:1]) if targets else stratified(y, sizes, random)
        sets = [(x[i], y[i]) for i in mixed]
    if targets is None:
        _check_trained(names, sets, where)
    prepare, scale = (_standard(sets[0][0], where) if standardise else None), None
    if targets is not None:
        scale = _scale(sets[0][1], names, where)
        sets = [(x, (y - scale.mean) / scale.deviation) for x, y in sets]
    if prepare is not None:
        sets = [(prepare(x), y) for x, y in sets]
    how = "given" if validation is not None else "held out"
    what = f"{len(names)} classes" if scale is None else f"targets {', '.join(names)}"
    scaled = ", each feature less its mean, over its standard deviation" if standardise else ""
    if scale is not None:
        scaled += "; targets likewise, and accuracy is the share of their variance that is explained (R^2)"
    return Data(
        DataSet(*sets[0]),
        DataSet(*sets[1]),
        names,
        f"{len(sets[0][1])} training and {len(sets[1][1])} validation points ({how}) of shape {sets[0][0].shape[1:]}, "
        f"{what}{scaled}",
        where,
        sha256=sha256,
        prepare=prepare,
        scale=scale,
    )


def _numbered(sets: list[Points], where: str) -> tuple[tuple[str, ...], list[Points]]:
    """The classes' names, and sets whose labels are their numbers."""
    # Numbered together, as one of the sets may lack a class.
    names, numbers = np.unique(np.concatenate([y for _, y in sets]), return_inverse=True)
    if len(names) < 2:
        raise ConfigError(f"{where}: expected labels of at least 2 classes, found {len(names)}.")
    parts = np.split(numbers.astype(np.int32), [len(sets[0][1])])
    return tuple(map(str, names.tolist())), [(x, y) for (x, _), y in zip(sets, parts, strict=False)]


def _check_trained(names: tuple[str, ...], sets: list[Points], where: str) -> None:
    """Raise a ConfigError if a class is only among the validation points: nothing could learn it."""
    absent = np.setdiff1d(sets[1][1], sets[0][1])
    if len(absent):
        shown = ", ".join(repr(names[k]) for k in absent[:5]) + (", ..." if len(absent) > 5 else "")
        raise ConfigError(
            f"{where}: expected training points of every class, but {len(absent)} of {len(names)} classes are among "
            f"the validation points only: {shown}. Correct the labels, give more points of each class, or name numbers "
            "that are to be predicted by problem.targets."
        )


def _named(targets: list[str], count: int) -> tuple[str, ...]:
    """A name for each target."""
    if len(targets) == count:
        return tuple(targets)
    if len(targets) > 1:
        raise ConfigError(
            f"problem.targets = {targets}: expected {count} names, or one for all, as y has {count} columns."
        )
    return tuple(f"{targets[0]}[{i}]" for i in range(count))


def _sizes(points: int, share: float) -> tuple[int, int]:
    """How many points are trained on, and how many are held out."""
    held = round(share * points)
    if not 0 < held < points:
        raise ConfigError(
            f"problem.validation_share = {share}: expected some of the {points} points for validation, and "
            "some for training. Change it."
        )
    return points - held, held


def _scale(y: np.ndarray, names: tuple[str, ...], where: str) -> Scale:
    """What takes targets to mean 0 and standard deviation 1."""
    mean, deviation = y.mean(axis=0), _deviation(y, where)
    for name, width in zip(names, deviation, strict=True):
        if not width > 0:
            raise ConfigError(
                f"{where}: expected a target that varies, but {name} is the same for all training points."
            )
    return Scale(mean, deviation)


def _standard(x: np.ndarray, where: str) -> Callable[[np.ndarray], np.ndarray]:
    """What takes these points to mean 0 and standard deviation 1 in each feature that varies."""
    deviation = _deviation(x, where)
    # A feature that never varies becomes 0 rather than nan; its mean, a rounded sum, may be another number.
    mean = np.where(deviation > 0, x.mean(axis=0), x[0])
    return lambda x: (x - mean) / np.where(deviation > 0, deviation, 1.0)


def _deviation(values: np.ndarray, where: str) -> np.ndarray:
    """The standard deviation over the points, exactly 0 of what never varies.

    Raises:
        ConfigError: Something varies by so little that squares of it are 0.
    """
    varies = values.min(axis=0) < values.max(axis=0)
    deviation: np.ndarray = np.where(varies, values.std(axis=0), 0.0)
    if (varies & (deviation == 0)).any():
        raise ConfigError(f"{where}: expected numbers that vary by more than 1e-150, or not at all. Scale them.")
    return deviation


def _checked(x: np.ndarray, y: np.ndarray, where: str, targets: list[str] | None) -> Points:
    """Inputs as float64 with at least one feature, labels as integers or texts, targets as float64."""
    x, y = np.asarray(x), np.asarray(y) if targets else whole(np.asarray(y))
    if y.dtype.kind == "S":
        try:
            y = np.char.decode(y, "utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{where}: expected labels that are texts in UTF-8. Save them as such.") from None
    # Together with others of int64 they would become doubles, which skip integers.
    y = y.astype(np.int64) if y.dtype.kind == "u" and y.max(initial=0) < 2**63 else y
    if x.dtype.kind not in "biuf" or x.ndim not in (2, 3, 4) or not x.size:
        raise ConfigError(
            f"{where}: expected inputs of numbers, (points, features) or (points, height, width[, channels]), found "
            f"{x.dtype} of shape {x.shape}."
        )
    if targets is not None:
        y = _numbers(y[:, None] if y.ndim == 1 else y, len(x), where)
    elif y.ndim != 1 or len(y) != len(x):
        raise ConfigError(f"{where}: expected {len(x)} labels, one for each point, found an array of shape {y.shape}.")
    if targets is None and y.dtype.kind not in "biuSU":
        raise ConfigError(
            f"{where}: expected labels that are integers or texts, found {y.dtype}, {y[:3].tolist()} ... Numbers to be "
            "predicted are named by problem.targets."
        )
    x = x.astype(np.float64)
    if not np.isfinite(x).all():
        row = int(np.argwhere(~np.isfinite(x))[0, 0])
        raise ConfigError(f"{where}: expected finite inputs, found {x[row][~np.isfinite(x[row])][0]} in point {row}.")
    _check_size(x, "inputs", where)
    return (x[..., None] if x.ndim == 3 else x), y


def _numbers(y: np.ndarray, points: int, where: str) -> np.ndarray:
    """Targets as float64, (points, targets)."""
    if y.dtype.kind not in "biuf" or y.ndim != 2 or len(y) != points or not y.size:
        raise ConfigError(
            f"{where}: expected targets that are numbers, ({points},) or ({points}, targets), found {y.dtype} of shape "
            f"{y.shape}."
        )
    y = y.astype(np.float64)
    if not np.isfinite(y).all():
        row = int(np.argwhere(~np.isfinite(y))[0, 0])
        raise ConfigError(f"{where}: expected finite targets, found {y[row].tolist()} of point {row}.")
    _check_size(y, "targets", where)
    return y


def _check_size(values: np.ndarray, what: str, where: str) -> None:
    if (size := np.abs(values).max()) > LARGEST:
        raise ConfigError(f"{where}: expected {what} of at most {LARGEST:g}, found one of size {size:.3g}. Scale them.")
