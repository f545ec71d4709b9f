"""Checkpoints of a run: written whole or not at all, and never believed without their checksum.

Each is a folder `checkpoints/ITERATION` with state.safetensors (a `jm.Snapshot`, one array per leaf, named by its path)
and manifest.json: format, iteration, what the loop keeps besides, the config, and the size and SHA-256 of the arrays
and of the manifest itself. It appears by one rename after everything is on disk.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy

import jaxmgrit as jm
from experiments.config.reader import FREE
from experiments.problems import Data
from experiments.config.schema import Config

FORMAT = 1  # raised whenever older checkpoints can no longer be read
ARRAYS, MANIFEST = "state.safetensors", "manifest.json"
UNFINISHED = ".unfinished-"


class Checkpoint(NamedTuple):
    """What a run goes on from.

    Attributes:
        snapshot: Of the trainer's state.
        loop: What the loop keeps besides: a JSON object.
    """

    snapshot: jm.Snapshot
    loop: dict[str, Any]


def binding(config: Config, data: Data) -> dict[str, Any]:
    """What a training cannot change half-way: its config but for the free keys, and its data."""
    kept = {key: value for key, value in config.model_dump().items() if key not in (*FREE, "name")}
    x, y = data.train
    some = slice(None, None, -(-len(y) // 1000))
    return {**kept, "data": _sha256(np.asarray(x[some], np.float64).tobytes() + np.asarray(y, np.int64).tobytes())}


class Refused(ValueError):
    """A checkpoint that cannot be used; the message says which and why."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: The run's folder.
        keep: How many of the latest are kept.
        binding: The keys and values a checkpoint must have been written under to be read.
    """

    def __init__(self, folder: Path, keep: int, binding: Mapping[str, Any]) -> None:
        self.folder = folder / "checkpoints"
        self.keep = keep
        self._binding = json.loads(json.dumps(binding))
        self._refused: list[Path] = []

    def there(self) -> list[Path]:
        """Those that are there, readable or not, the latest first."""
        found = [path for path in self.folder.glob("*") if path.name.isdigit() and path.is_dir()]
        return sorted(found, key=lambda path: int(path.name), reverse=True)

    def latest(self, like: Callable[[dict[str, Any]], jm.Snapshot]) -> tuple[Checkpoint | None, list[str]]:
        """The latest that can be used, if any, and for each one after it a sentence why it cannot; see `read`.

        The refused ones are renamed when the next checkpoint is written, so that they never count as kept.
        """
        reasons: list[str] = []
        for path in self.there():
            try:
                return self.read(path, like), reasons
            except Refused as error:
                reasons.append(str(error))
                self._refused.append(path)
        return None, reasons

    def write(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint of an iteration that has none, then remove all but the latest `keep`.

        Raises:
            OSError: It cannot be written, for want of space perhaps; then none is lost and none half written.
        """
        name = f"{int(checkpoint.snapshot.iteration):08d}"
        final, unfinished = self.folder / name, self.folder / (UNFINISHED + name)
        arrays = safetensors.numpy.save(_named(checkpoint.snapshot))
        manifest = {
            "format": FORMAT,
            "iteration": int(checkpoint.snapshot.iteration),
            "arrays": {"bytes": len(arrays), "sha256": _sha256(arrays)},
            "loop": checkpoint.loop,
            "config": self._binding,
        }
        manifest["sha256"] = _sha256(_canonical(manifest))
        self.folder.mkdir(exist_ok=True)
        self._clear()
        try:
            unfinished.mkdir()
            _write(unfinished / ARRAYS, arrays)
            _write(unfinished / MANIFEST, json.dumps(manifest, indent=1).encode())
            _sync(unfinished)
            for refused in self._refused:
                refused.rename(self.folder / f"refused-{refused.name}-{time.time_ns()}")
            self._refused = []
            unfinished.rename(final)
            _sync(self.folder)
        finally:
            self._clear()
        for old in self.there()[self.keep :]:
            old.rename(self.folder / (UNFINISHED + old.name))  # no half-removed one is ever taken for a checkpoint
        self._clear()
        return final

    def read(self, path: Path, like: Callable[[dict[str, Any]], jm.Snapshot]) -> Checkpoint:
        """Read one checkpoint.

        Args:
            path: One of `there()`.
            like: From what the loop kept to a snapshot of the same structure, shapes and dtypes.

        Raises:
            Refused: It is damaged, or another program's, version's or training's.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_bytes())
            arrays = (path / ARRAYS).read_bytes()
        except (OSError, ValueError) as error:
            raise Refused(f"{path}: {_reason(error)}") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            found = manifest.get("format") if isinstance(manifest, dict) else None
            raise Refused(f"{path}: {MANIFEST} has format {found!r}, but this version reads {FORMAT}")
        if manifest.pop("sha256", None) != _sha256(_canonical(manifest)):
            raise Refused(f"{path}: {MANIFEST} is damaged: its checksum is wrong")
        if len(arrays) != manifest["arrays"]["bytes"]:
            raise Refused(f"{path}: {ARRAYS} has {len(arrays)} bytes of {manifest['arrays']['bytes']}")
        if _sha256(arrays) != manifest["arrays"]["sha256"]:
            raise Refused(f"{path}: {ARRAYS} is damaged: its checksum is wrong")
        if manifest["iteration"] != int(path.name):
            raise Refused(f"{path}: it is the checkpoint of iteration {manifest['iteration']}")
        if other := _difference(manifest["config"], self._binding):
            raise Refused(f"{path}: it belongs to another training: {other}")
        return Checkpoint(_unnamed(safetensors.numpy.load(arrays), like(manifest["loop"]), path), manifest["loop"])

    def _clear(self) -> None:
        for path in self.folder.glob(UNFINISHED + "*"):
            shutil.rmtree(path, ignore_errors=True)


def _named(snapshot: jm.Snapshot) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(snapshot)
    return {_name(path): np.asarray(leaf, order="C") for path, leaf in leaves}


def _unnamed(arrays: Mapping[str, np.ndarray], like: jm.Snapshot, path: Path) -> jm.Snapshot:
    def one(key: Any, own: np.ndarray) -> np.ndarray:
        found = arrays.get(_name(key))
        if found is None or found.shape != own.shape or found.dtype != own.dtype:
            given = "missing" if found is None else f"{found.dtype}{list(found.shape)}"
            raise Refused(f"{path}: {_name(key)} is {given}, expected {own.dtype}{list(own.shape)}")
        return found

    if unknown := sorted(set(arrays) - {_name(key) for key, _ in jax.tree_util.tree_leaves_with_path(like)}):
        raise Refused(f"{path}: it holds {unknown[0]}, which this training does not have")
    snapshot: jm.Snapshot = jax.tree_util.tree_map_with_path(one, like)
    return snapshot


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _difference(given: Any, own: Any, key: str = "") -> str:
    """The first key by which two configs differ, in words."""
    if isinstance(given, dict) and isinstance(own, dict):
        inner = (_difference(given.get(k), own.get(k), f"{key}.{k}".lstrip(".")) for k in {**own, **given})
        return next(filter(None, inner), "")
    return "" if given == own else f"{key} was {given!r}, now it is {own!r}"


def _canonical(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{Path(error.filename).name} cannot be read: {error.strerror}"
    return f"{MANIFEST} is damaged: it is not JSON"
