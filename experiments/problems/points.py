"""Points of the user's own, from wherever: checked, their labels numbered, their inputs scaled."""

from collections.abc import Callable

import numpy as np

from experiments.errors import ConfigError
from experiments.problems.data import Data, DataSet, stratified
from experiments.problems.sources import whole

Points = tuple[np.ndarray, np.ndarray]  # inputs and labels, not yet checked


def data(
    train: Points, validation: Points | None, share: float, standardise: bool, where: str, seed: int, sha256: str = ""
) -> Data:
    """Checked points as a problem's data.

    Args:
        train: Inputs (points, features), (points, height, width) or (points, height, width, channels), and labels
            (points,), integers or texts.
        validation: The same; None: held out of the training points.
        share: Of the training points, to be held out.
        standardise: Whether each feature less its mean is divided by its standard deviation, both over the training
            points.
        where: Where they come from, for messages.
        seed: Of the choice of what is held out.
        sha256: Of the files they come from.

    Raises:
        ConfigError: Arrays that are no such points; the message says which and why.
    """
    sets = [_checked(*train, where)]
    if validation is not None:
        sets.append(_checked(*validation, f"validation points of {where}"))
        if sets[0][0].shape[1:] != sets[1][0].shape[1:]:
            raise ConfigError(
                f"{where}: expected validation inputs of shape {sets[0][0].shape[1:]}, as the training inputs, found "
                f"{sets[1][0].shape[1:]}."
            )
    # Numbered together, as one of the sets may lack a class.
    labels = np.concatenate([y for _, y in sets])
    names, numbers = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise ConfigError(f"{where}: expected labels of at least 2 classes, found {len(names)}.")
    parts = np.split(numbers.astype(np.int32), [len(sets[0][1])])
    split = [DataSet(x, y) for (x, _), y in zip(sets, parts, strict=False)]
    if validation is None:
        held = round(share * len(labels))
        if not 0 < held < len(labels):
            raise ConfigError(
                f"problem.validation_share = {share}: expected some of the {len(labels)} points for validation, and "
                "some for training. Change it."
            )
        (x, y), random = split[0], np.random.default_rng(seed)
        split = [DataSet(x[i], y[i]) for i in stratified(y, (len(labels) - held, held), random)]
    prepare = _standard(split[0].x) if standardise else None
    if prepare is not None:
        split = [DataSet(prepare(part.x), part.y) for part in split]
    how = "given" if validation is not None else "held out"
    return Data(
        split[0],
        split[1],
        tuple(map(str, names.tolist())),
        f"{len(split[0].y)} training and {len(split[1].y)} validation points ({how}) of shape {split[0].x.shape[1:]}, "
        f"{len(names)} classes" + (", each feature less its mean, over its standard deviation" if standardise else ""),
        where,
        sha256=sha256,
        prepare=prepare,
    )


def _standard(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """What takes these points to mean 0 and standard deviation 1 in each feature that varies."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    # A feature that never varies becomes 0 rather than nan.
    return lambda x: (x - mean) / np.where(deviation > 0, deviation, 1.0)


def _checked(x: np.ndarray, y: np.ndarray, where: str) -> Points:
    """Inputs as float64 with at least one feature, labels as integers or texts."""
    x, y = np.asarray(x), whole(np.asarray(y))
    if x.dtype.kind not in "biuf" or x.ndim not in (2, 3, 4) or not x.size:
        raise ConfigError(
            f"{where}: expected inputs of numbers, (points, features) or (points, height, width[, channels]), found "
            f"{x.dtype} of shape {x.shape}."
        )
    if y.ndim != 1 or len(y) != len(x):
        raise ConfigError(f"{where}: expected {len(x)} labels, one for each point, found an array of shape {y.shape}.")
    if y.dtype.kind not in "biuSU":
        raise ConfigError(f"{where}: expected labels that are integers or texts, found {y.dtype}, {y[:3].tolist()} ...")
    x = x.astype(np.float64)
    if not np.isfinite(x).all():
        row = int(np.argwhere(~np.isfinite(x))[0, 0])
        raise ConfigError(f"{where}: expected finite inputs, found {x[row][~np.isfinite(x[row])][0]} in point {row}.")
    return (x[..., None] if x.ndim == 3 else x), y
