"""Where data are looked for, and how they are fetched; what files hold is read by `experiments.problems.arrays`."""

import http.client
import importlib.util
import os
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.errors import ConfigError
from experiments.foundation.files import expanded, home
from experiments.problems.arrays import corrupt, md5, read_array, read_bytes, whole

__all__ = [
    "Place",
    "corrupt",
    "data_folder",
    "download",
    "download_folder",
    "find",
    "md5",
    "missing",
    "named_folder",
    "package_folder",
    "read_array",
    "read_bytes",
    "whole",
]

VARIABLE = "JAXMGRIT_DATA"
TIMEOUT = 60  # seconds without an answer, of a download
LONGEST = 1800  # seconds of a download in all: 6 kB/s for the largest file of a known problem
LARGEST = 2**26  # bytes of a download; the largest file of a known problem has 10 MB
BLOCK = 2**16  # bytes read at a time, at most


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


def named_folder(variable: str) -> Path | None:
    """The folder that a variable of the environment names, if it is set.

    Raises:
        ConfigError: It names the home folder of a user that there is not.
    """
    name = os.environ.get(variable)
    return expanded(name, variable) if name else None


def data_folder(problem: str) -> Place:
    """The problem's folder under `$JAXMGRIT_DATA`."""
    root = named_folder(VARIABLE)
    title = f"${VARIABLE}/{problem}"
    return Place(title, root / problem) if root else Place(title, None, f"{VARIABLE} is not set")


def download_folder(problem: str) -> Place:
    """Where downloads are kept."""
    root = named_folder("XDG_CACHE_HOME") or home() / ".cache"
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
            # A folder may have the name of the file that lies in it, or beside it: only files count.
            files = {path.name.lower(): path for path in sorted(place.folder.iterdir()) if path.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            looked.append(f"{place.title}: no folder {place.folder}")
            continue
        except OSError as error:
            raise ConfigError(f"{place.folder}: cannot be read: {error.strerror}. Correct its permissions.") from None
        chosen = [next((files[name.lower()] for name in names if name.lower() in files), None) for names in needed]
        complete = [file for file in chosen if file is not None]
        if len(complete) == len(needed):
            return place, complete
        if complete:
            lacking = [names[0] for names, file in zip(needed, chosen, strict=True) if file is None]
            looked.append(f"{place.title}: {place.folder} lacks {', '.join(lacking)}")
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
        # Beside its place, as a rename is all or nothing within one file system only; by its own name, as
        # checks go by suffixes.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            partial = Path(folder) / path.name
            _fetch(url, partial)
            check(partial)
            partial.replace(path)
    except ConfigError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(
            f"problem.download = True: {url} could not be fetched to {path}: {said}. Try again later, or get the file "
            "by another way and put it there."
        ) from None


def _fetch(url: str, path: Path) -> None:
    """Write what a server answers, in bounded time and to a bounded size."""
    end, size = time.monotonic() + LONGEST, 0
    # The timeout is for each answer: of a server that sends a byte a minute LONGEST is the end.
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, path.open("wb") as file:
        announced = answer.headers.get("Content-Length")
        while block := answer.read1(BLOCK):  # what has come, however little
            file.write(block)
            size += len(block)
            if size > LARGEST:
                raise OSError(f"expected at most {LARGEST} bytes, the server sends more")
            if time.monotonic() > end:
                raise OSError(f"not complete after {LONGEST} seconds")
    if announced is not None and announced != str(size):
        raise OSError(f"the connection was lost after {size} of {announced} bytes")
