"""The end of a run: its final parameters, and the summary that tells of them.

parameters.npz belongs to the iteration, and has the size and checksum, that summary.json in the same folder names: the
file of another run, an older or a damaged one is never taken for it. Beside theirs is a checksum of the summary itself,
or one changed digit would make them those of another iteration.
"""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jaxmgrit as jm
from experiments.runs.files import Unreadable, checksum, read_bounded, write_whole
from experiments.runs.metrics import finite

PARTS = ("opening", "layers", "closing")
PARAMETERS, SUMMARY = "parameters.npz", "summary.json"
LARGEST = 2**40  # bytes of parameters in a file that names no size itself
LARGEST_SUMMARY = 2**22  # bytes; it holds some lines, and one for each process


def save_params(path: Path, params: jm.Params) -> dict[str, Any]:
    """Save parameters, dicts of arrays, as an npz file with one array per leaf; whole, or not at all.

    The names are the paths: `opening/w`, `opening/b`, `layers/w` (leading axis: the N layers), ..., `closing/b`.

    Args:
        path: Where to.
        params: The parameters.

    Returns:
        `bytes` and `sha256` of the file, for the summary.

    Raises:
        OSError: It cannot be written.
    """

    def leaves(tree: Any, path: str) -> dict[str, np.ndarray]:
        if isinstance(tree, Mapping):
            return {name: leaf for key in tree for name, leaf in leaves(tree[key], f"{path}/{key}").items()}
        return {path: np.asarray(tree)}

    arrays = {name: leaf for part in PARTS for name, leaf in leaves(getattr(params, part), part).items()}
    # In memory, since the file is written whole, and its checksum is that of what was meant to be written.
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    data = file.getvalue()
    write_whole(path, data)
    return _stamp(data)


def load_params(path: Path) -> jm.Params:
    """Load what `save_params` saved: `jm.Params` of dicts of NumPy arrays.

    Raises:
        ValueError: The file is damaged or something else; the message names it.
    """
    try:
        return _parse(read_bounded(path, LARGEST))
    except Unreadable as error:
        raise ValueError(f"{path}: {error}") from None


class Final(NamedTuple):
    """What summary.json says of the end of a run.

    Attributes:
        iteration: Of the final parameters; None where the run has not come to its end.
        stamp: Their file's `bytes` and `sha256`; None for runs that were made before these were written.
    """

    iteration: int | None
    stamp: dict[str, Any] | None


def read_final(folder: Path) -> Final:
    """What summary.json says of the end of a run; nothing, where it is missing or damaged."""
    summary = read_summary(folder)
    iteration = summary.get("iteration")
    if summary.get("status") != "finished" or type(iteration) is not int or iteration < 0:
        return Final(None, None)
    return Final(iteration, summary.get("parameters"))


def write_summary(folder: Path, values: Mapping[str, Any]) -> None:
    """Write the summary of a run, numbers that are not finite as null; with a checksum where it tells of parameters.

    Raises:
        OSError: It cannot be written; then the one before is as it was.
    """
    summary = {key: finite(value) for key, value in values.items()}
    if "parameters" in summary:
        summary["parameters"] = {**summary["parameters"], "summary": checksum(summary)}
    write_whole(folder / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a run; nothing, where it is missing or damaged.

    Earlier versions wrote none with a checksum; those are believed.
    """
    try:
        summary = json.loads(read_bounded(folder / SUMMARY, LARGEST_SUMMARY))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(summary, dict):
        return {}
    stamp = summary.get("parameters")
    own = stamp.pop("summary", None) if isinstance(stamp, dict) else None
    return summary if own in (None, checksum(summary)) else {}


def load_final(folder: Path, final: Final) -> jm.Params:
    """The final parameters of a run.

    Args:
        folder: Of the run.
        final: What its summary says.

    Raises:
        ValueError: The file is damaged, or not the one that the summary tells of; the message names it.
    """
    path = folder / PARAMETERS
    try:
        data = read_bounded(path, _size(final.stamp))
        if final.stamp is not None and _stamp(data) != final.stamp:
            raise Unreadable(f"it is not the file that {SUMMARY} tells of: its size or checksum is another")
        return _parse(data)
    except Unreadable as error:
        raise ValueError(f"{path}: {error}") from None


def _size(stamp: Any) -> int:
    size = stamp.get("bytes") if isinstance(stamp, dict) else None
    return min(size, LARGEST) if type(size) is int and size >= 0 else LARGEST


def _stamp(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _parse(data: bytes) -> jm.Params:
    """The parameters in an npz file's bytes; no array takes more memory than its header and the file's size allow."""
    parts: dict[str, Any] = {part: {} for part in PARTS}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # `np.savez` does not compress: sizes far beyond the file's are made up.
            if sum(entry.file_size for entry in archive.infolist()) > 2 * len(data) + 2**20:
                raise Unreadable("it claims more data than it holds")
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                for name in file.files:
                    *above, leaf = name.split("/")
                    place = parts
                    for key in above:
                        place = place.setdefault(key, {})
                    place[leaf] = file[name]
    except (ValueError, KeyError, AttributeError, TypeError, EOFError, OSError, MemoryError) as error:
        raise Unreadable(f"it is no file of parameters: {error}") from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        # The last two: what zipfile says of unknown compressions and of passwords.
        raise Unreadable(f"it is damaged: {error}") from None
    if set(parts) != set(PARTS):
        raise Unreadable(f"it is no file of parameters: expected arrays named {', '.join(f'{p}/...' for p in PARTS)}")
    return jm.Params(**parts)
