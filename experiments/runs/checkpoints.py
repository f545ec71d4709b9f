"""Checkpoints of a run: written whole or not at all, and never believed without their checksum.

Each is a folder `checkpoints/ITERATION` with state.safetensors (a `jm.Snapshot`, one array per leaf, named by its path)
and manifest.json: format, iteration, what the loop keeps besides, the config, and the size and SHA-256 of the arrays
and of the manifest itself. It appears by one rename after everything is on disk.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

import jaxmgrit as jm
from experiments.runs.binding import Binding
from experiments.runs.files import Unreadable, checksum, read_bounded, sync_folder, write_synced
from experiments.training.checkpoint import Checkpoint, Refused

FORMAT = 1  # raised whenever older checkpoints can no longer be read
ARRAYS, MANIFEST = "state.safetensors", "manifest.json"
UNFINISHED = ".unfinished-"
LARGEST_MANIFEST = 2**20  # bytes; a config and some numbers take a few thousand
ATTEMPTS = 100  # to read a checkpoint, while another process writes new ones and removes old ones
LARGEST_HEADER = 2**24  # bytes of names and shapes before the arrays

Like = Callable[[Any, int], jm.Snapshot]  # from what the loop kept, and the iteration, to a snapshot of the same shapes


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: The run's folder.
        keep: How many of the latest are kept.
        binding: What a checkpoint must have been written under to be read.
    """

    def __init__(self, folder: Path, keep: int, binding: Binding) -> None:
        self.folder = folder / "checkpoints"
        self.keep = keep
        self._binding = binding
        self._refused: list[Path] = []

    def paths(self) -> list[Path]:
        """Those in the folder, readable or not, the latest first."""
        folders = [path for path in self.folder.glob("*") if re.fullmatch("[0-9]{1,18}", path.name) and path.is_dir()]
        return sorted(folders, key=lambda path: int(path.name), reverse=True)

    def latest(self, like: Like) -> tuple[Checkpoint | None, list[str]]:
        """The latest that can be used, if any, and for each one after it a sentence why it cannot; see `read`.

        The refused ones are renamed when the next checkpoint is written, so that they never count as kept.
        """
        for paths in self.listed():
            reasons: list[str] = []
            self._refused = []
            for path in paths:
                try:
                    return self.read(path, like), reasons
                except Refused as error:
                    if path.exists():
                        reasons.append(str(error))
                        self._refused.append(path)
        return None, reasons

    def listed(self) -> Iterator[list[Path]]:
        """`paths()`, and again as long as one of those it gave has gone: a training may go on meanwhile."""
        for _ in range(ATTEMPTS):
            yield (paths := self.paths())
            if all(path.exists() for path in paths):
                return

    def write(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint of an iteration that has none, then remove all but the latest `keep`.

        Raises:
            OSError: It cannot be written, for want of space perhaps; then none is lost and none half written.
        """
        name = f"{checkpoint.iteration:08d}"
        final, unfinished = self.folder / name, self.folder / (UNFINISHED + name)
        arrays = safetensors.numpy.save(_named(checkpoint.snapshot))
        manifest = {
            "format": FORMAT,
            "iteration": checkpoint.iteration,
            "arrays": {"bytes": len(arrays), "sha256": _sha256(arrays)},
            "loop": checkpoint.loop,
            "config": self._binding.values,
        }
        manifest["sha256"] = checksum(manifest)
        self.folder.mkdir(exist_ok=True)
        # Of what a process that was killed has left here half written.
        self._clear()
        try:
            unfinished.mkdir()
            write_synced(unfinished / ARRAYS, arrays)
            write_synced(unfinished / MANIFEST, json.dumps(manifest, indent=1).encode())
            # The names too must be on disk before the rename, or a power cut may leave an empty checkpoint.
            sync_folder(unfinished)
            for refused in self._refused:
                # The time is in its name, as one of the same iteration may have been refused before.
                refused.rename(self.folder / f"refused-{refused.name}-{time.time_ns()}")
            self._refused = []
            unfinished.rename(final)
            sync_folder(self.folder)
        finally:
            self._clear()
        for old in self.paths()[self.keep :]:
            old.rename(self.folder / (UNFINISHED + old.name))  # no half-removed one is ever taken for a checkpoint
        self._clear()
        return final

    def read(self, path: Path, like: Like) -> Checkpoint:
        """Read one checkpoint.

        Args:
            path: One of `paths()`.
            like: From what the loop kept, and the iteration, to a snapshot of the same structure, shapes and dtypes;
                it raises `Refused` for what no loop keeps.

        Raises:
            Refused: It is damaged, or another program's, version's or training's.
        """
        try:
            return self._read(path, like)
        except Refused as error:
            raise Refused(f"{path}: {error}") from None
        except RecursionError:
            raise Refused(f"{path}: {MANIFEST} is nested too deeply") from None

    def _read(self, path: Path, like: Like) -> Checkpoint:
        manifest = _manifest(path / MANIFEST)
        iteration, stamp = manifest["iteration"], manifest["arrays"]
        if iteration != int(path.name):
            raise Refused(f"it is the checkpoint of iteration {iteration}")
        if other := self._binding.difference(manifest["config"]):
            raise Refused(f"it belongs to another training: {other}")
        wanted = like(manifest["loop"], iteration)
        # The manifest's size may be made up: no more is read than this training's arrays can have.
        most = sum(leaf.nbytes for leaf in jax.tree.leaves(wanted)) + LARGEST_HEADER
        arrays = _file(path / ARRAYS, min(stamp["bytes"], most))
        if len(arrays) != stamp["bytes"]:
            raise Refused(f"{ARRAYS} has {len(arrays)} bytes of {stamp['bytes']}")
        if _sha256(arrays) != stamp["sha256"]:
            raise Refused(f"{ARRAYS} is damaged: its checksum is wrong")
        try:
            named = safetensors.numpy.load(arrays)
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            raise Refused(f"{ARRAYS} is no file of arrays: {error}") from None
        snapshot = _unnamed(named, wanted)
        if snapshot.iteration != iteration:
            raise Refused(f"{ARRAYS} is about iteration {snapshot.iteration}, {MANIFEST} about {iteration}")
        return Checkpoint(snapshot, manifest["loop"])

    def _clear(self) -> None:
        for path in self.folder.glob(UNFINISHED + "*"):
            shutil.rmtree(path, ignore_errors=True)


def _manifest(path: Path) -> dict[str, Any]:
    """A manifest whose checksum is right and whose values are of their kinds."""
    try:
        manifest = json.loads(_file(path, LARGEST_MANIFEST))
    except Refused:
        raise
    except ValueError:
        raise Refused(f"{MANIFEST} is damaged: it is not JSON") from None
    given = manifest.get("format") if isinstance(manifest, dict) else None
    # Not isinstance, to which true is an int, and equal to 1.
    if type(given) is not int or given != FORMAT:
        raise Refused(f"{MANIFEST} has format {given!r}, but this version reads {FORMAT}")
    if manifest.pop("sha256", None) != checksum(manifest):
        raise Refused(f"{MANIFEST} is damaged: its checksum is wrong")
    kinds = {"iteration": int, "arrays": dict, "loop": dict, "config": dict}
    stamp = manifest["arrays"] if isinstance(manifest.get("arrays"), dict) else {}
    values = {**manifest, "arrays.bytes": stamp.get("bytes"), "arrays.sha256": stamp.get("sha256")}
    for key, kind in {**kinds, "arrays.bytes": int, "arrays.sha256": str}.items():
        if type(values.get(key)) is not kind or (kind is int and values[key] < 0):
            names = {int: "an integer >= 0", dict: "an object", str: "text"}
            raise Refused(f"{MANIFEST}: {key} is {values.get(key)!r:.60}, expected {names[kind]}")
    return manifest


def _file(path: Path, most: int) -> bytes:
    try:
        return read_bounded(path, most)
    except Unreadable as error:
        raise Refused(f"{path.name} {str(error).removeprefix('it ')}") from None


def _named(snapshot: jm.Snapshot) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(snapshot)
    return {_name(path): np.asarray(leaf, order="C") for path, leaf in leaves}


def _unnamed(arrays: Mapping[str, np.ndarray], like: jm.Snapshot) -> jm.Snapshot:
    def one(key: Any, own: np.ndarray) -> np.ndarray:
        array = arrays.get(_name(key))
        if array is None or array.shape != own.shape or array.dtype != own.dtype:
            given = "missing" if array is None else f"{array.dtype}{list(array.shape)}"
            raise Refused(f"{_name(key)} is {given}, expected {own.dtype}{list(own.shape)}")
        return array

    if unknown := sorted(set(arrays) - {_name(key) for key, _ in jax.tree_util.tree_leaves_with_path(like)}):
        raise Refused(f"it holds {unknown[0]}, which this training does not have")
    snapshot: jm.Snapshot = jax.tree_util.tree_map_with_path(one, like)
    return snapshot


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
