"""Where data are looked for, and files of data read with their faults named."""

import gzip
import hashlib
import importlib.util
import os
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.errors import ConfigError

VARIABLE = "JAXMGRIT_DATA"
TIMEOUT = 60  # seconds without an answer, of a download


class Place(NamedTuple):
    """A folder to look in.

    Attributes:
        title: What the user knows it as.
        folder: The folder; None: there is none, and `reason` says why.
        reason: Why there is no folder.
    """

    title: str
    folder: Path | None
    reason: str = ""


def data_folder(problem: str) -> Place:
    """The problem's folder under `$JAXMGRIT_DATA`."""
    root = os.environ.get(VARIABLE)
    title = f"${VARIABLE}/{problem}"
    return Place(title, Path(root).expanduser() / problem) if root else Place(title, None, f"{VARIABLE} is not set")


def download_folder(problem: str) -> Place:
    """Where downloads are kept."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Place("earlier downloads", root / "jaxmgrit" / problem)


def package_folder(package: str, *parts: str) -> Place:
    """A folder inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return Place(f"the package {package}", None, "not installed")
    return Place(f"the package {package}", Path(spec.origin).parent.joinpath(*parts))


def find(places: Sequence[Place], needed: Sequence[Sequence[str]]) -> tuple[Place, list[Path]] | list[str]:
    """The first place that has all needed files.

    Args:
        places: Where to look, in this order.
        needed: For each file the names it may have, in this order; upper and lower case are the same.

    Returns:
        The place and its files; or, where no place has them, one line about each place.

    Raises:
        ConfigError: A folder that cannot be read.
    """
    looked = []
    for place in places:
        if place.folder is None:
            looked.append(f"{place.title}: {place.reason}")
            continue
        try:
            there = {path.name.lower(): path for path in sorted(place.folder.iterdir())}
        except (FileNotFoundError, NotADirectoryError):
            looked.append(f"{place.title}: no folder {place.folder}")
            continue
        except OSError as error:
            raise ConfigError(f"{place.folder}: cannot be read: {error.strerror}. Correct its permissions.") from None
        files = [next((there[name.lower()] for name in names if name.lower() in there), None) for names in needed]
        if found := [file for file in files if file is not None]:
            if len(found) == len(needed):
                return place, found
            missing = [names[0] for names, file in zip(needed, files, strict=True) if file is None]
            looked.append(f"{place.title}: {place.folder} lacks {', '.join(missing)}")
        else:
            looked.append(f"{place.title}: nothing in {place.folder}")
    return looked


def missing(what: str, looked: Sequence[str], commands: Sequence[str]) -> ConfigError:
    """The error of data that were nowhere found: where it was looked, and how to get them."""
    return ConfigError(
        "\n".join(
            [f"{what} not found. Looked in:", *(f"  {line}" for line in looked), "Get it by one of:"]
            + [f"  {line}" for line in commands]
        )
    )


def corrupt(path: Path, fault: str) -> ConfigError:
    """The error of a file that is not what it should be."""
    return ConfigError(f"{path}: {fault}. Remove the file and get it anew, or name another folder.")


def read_bytes(path: Path) -> bytes:
    """A file's contents, uncompressed where its name ends in .gz.

    Raises:
        ConfigError: A truncated or corrupt file.
    """
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except EOFError:
        raise corrupt(path, "the gzip file is truncated") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise corrupt(path, f"not a valid gzip file ({error})") from None
    except OSError as error:
        raise corrupt(path, f"cannot be read: {error.strerror}") from None


def read_array(path: Path, name: str) -> np.ndarray:
    """An array of a .npy, .npz or .mat file.

    Args:
        path: The file.
        name: The array's, in files of several.

    Raises:
        ConfigError: A corrupt file, or one without the array.
    """
    if path.suffix == ".mat":
        return _load_mat(path, name)
    try:
        with path.open("rb") as file:  # or NumPy leaves a corrupt file open
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray) or name in found.files:
                return np.asarray(found if isinstance(found, np.ndarray) else found[name])
            names = found.files
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise corrupt(path, f"not a valid {path.suffix} file ({error})") from None
    raise corrupt(path, f"expected an array '{name}', found {', '.join(names) or 'none'}")


def _load_mat(path: Path, name: str) -> np.ndarray:
    from scipy.io import loadmat  # slow to import, and seldom needed
    from scipy.io.matlab import MatReadError

    try:
        arrays = loadmat(path)
    except (MatReadError, NotImplementedError, ValueError, TypeError, IndexError, OSError, zlib.error) as error:
        raise corrupt(path, f"not a valid .mat file ({error})") from None
    if name in arrays:
        return np.asarray(arrays[name])
    there = [key for key in arrays if not key.startswith("__")]
    raise corrupt(path, f"expected an array '{name}', found {', '.join(there) or 'none'}")


def md5(data: bytes) -> str:
    """A checksum."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def download(url: str, path: Path, check: Callable[[Path], object]) -> None:
    """Fetch a file; it is there only once it is whole and has been checked.

    Args:
        url: From where.
        path: Where to.
        check: Reads the file, and raises a ConfigError if it is not what it should be.

    Raises:
        ConfigError: The download failed, or the file is not what it should be.
    """
    print(f"downloading {url} to {path}", flush=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            partial = Path(folder) / path.name
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                partial.write_bytes(answer.read())
            check(partial)
            partial.replace(path)
    except OSError as error:
        raise ConfigError(
            f"problem.download = True: {url} could not be fetched to {path}: {error}. Try again later, or get the file "
            "by another way and put it there."
        ) from None
