"""What binds a checkpoint to its training: the config but for what may change on the way, and the data's checksum."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.config.reader import FREE, PLACES
from experiments.config.schema import Config
from experiments.problems import Data, DataSet

CHUNK = 1024  # points at a time
LATER = ("points",)  # keys that checkpoints of earlier versions do not have, and no default says what they were
NAMES = {"data": "the checksum of the training data", "points": "the checksum of training and validation data"}


class Binding:
    """What a training cannot change half-way.

    Args:
        config: Of the training.
        data: What is trained on.

    Attributes:
        values: Its config but for the free keys and the data's places, and checksums of the data: a JSON object.
    """

    def __init__(self, config: Config, data: Data) -> None:
        kept = {key: value for key, value in config.model_dump().items() if key not in (*FREE, "name")}
        x, y = data.train
        # At most 1000 inputs, as in earlier versions, whose checkpoints must still fit; `points` is of them all.
        some = slice(None, None, -(-len(y) // 1000))
        sample = np.asarray(x[some], np.float64).tobytes() + _labels(y).tobytes()
        sums = {"data": hashlib.sha256(sample).hexdigest(), "points": _checksum(data.train, data.validation)}
        # As a checkpoint gives them back: JSON makes lists of tuples.
        self.values: dict[str, Any] = json.loads(json.dumps(_without_places(kept) | sums))
        section = type(config.problem)
        # Not validated, since without a problem no config is complete.
        default = Config.model_construct().model_dump()
        default["problem"] = {key: f.default for key, f in section.model_fields.items() if not f.is_required()}
        self._default = json.loads(json.dumps(default, default=str))

    def difference(self, given: Mapping[str, Any]) -> str:
        """The first key by which the values of a checkpoint differ, in words; "" where they do not.

        A key that an earlier version did not know had its default value.
        """
        given = _without_places(given)
        given = {**given, **{key: self.values[key] for key in LATER if key not in given}}
        return _difference(given, self.values, self._default)


def _without_places(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the keys that say where the data are: what they are is told by their checksum."""
    problem = values.get("problem")
    if not isinstance(problem, dict):
        return dict(values)
    return {**values, "problem": {key: value for key, value in problem.items() if f"problem.{key}" not in PLACES}}


def _checksum(*parts: DataSet) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for start in range(0, len(part.y), CHUNK):
            digest.update(np.ascontiguousarray(part.x[start : start + CHUNK], np.float64).tobytes())
        digest.update(np.ascontiguousarray(_labels(part.y)).tobytes())
    return digest.hexdigest()


def _labels(y: np.ndarray) -> np.ndarray:
    """Classes in one width, whatever theirs; numbers as they are."""
    return y.astype(np.float64 if y.dtype.kind == "f" else np.int64)


def _difference(given: Any, own: Any, default: Any, key: str = "") -> str:
    if isinstance(given, dict) and isinstance(own, dict):
        inner = default if isinstance(default, dict) else {}
        for name in {**own, **given}:
            was = given.get(name, inner.get(name))
            if difference := _difference(was, own.get(name), inner.get(name), f"{key}.{name}".lstrip(".")):
                return difference
        return ""
    # In Python 1 == 1.0 == True.
    same = given == own and type(given) is type(own)
    return "" if same else f"{NAMES.get(key, key)} was {given!r}, now it is {own!r}"
