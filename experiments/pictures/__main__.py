"""Draw a picture again from its figures: `python -m experiments.pictures FILE.json [FILE.json ...] PICTURE.png`.

FILE is what a command has left: `times.json` (time_to_accuracy), `scaling.json` (scaling), `published.json`
(published), `trainings.json` (rough), `residuals.json` (convergence), `demo.json` (demo), or what `benchmark --json`
wrote; several of these are drawn into one picture. Exit code 0: done; 2: it cannot be done.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import convergence
from experiments.config.arguments import Parser, path
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.foundation.files import read_limited
from experiments.pictures import published, scaling, speed_up, time_to_accuracy
from experiments.rough import picture as rough
from experiments.runs import terminal
from experiments.runs.terminal import ERR, OUT
from experiments.timing import demo_picture

Drawing = Callable[[dict[str, Any], Path], None]


def _rough(result: dict[str, Any], file: Path) -> None:
    rough.draw(result["runs"], Config.model_validate(result["config"]), file)


def _convergence(result: dict[str, Any], file: Path) -> None:
    histories = {kind: {int(n): history for n, history in result[kind].items()} for kind in convergence.KINDS}
    convergence.draw(file, histories, argparse.Namespace(**result["options"]))


def _demo(result: dict[str, Any], file: Path) -> None:
    numbered = {key: {int(n): value for n, value in result[key].items()} for key in ("cycles", "devices")}
    demo_picture.draw(file, result | numbered)


LARGEST = 2**26  # bytes of a file of figures; the largest has 2e5
# By keys that nothing but this command's file has.
DRAWINGS: dict[tuple[str, ...], Drawing] = {
    ("runs", "target"): time_to_accuracy.draw,
    ("strong", "weak"): scaling.draw,
    ("published_weak", "published_strong"): published.draw,
    ("cases",): speed_up.draw,
    ("race", "steps"): _demo,
    ("options", "state", "adjoint"): _convergence,
    ("runs", "config"): _rough,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = Parser("python -m experiments.pictures", "%(prog)s FILE.json [FILE.json ...] PICTURE.png")
    parser.add_argument("files", nargs="+", type=path, metavar="FILE", help="figures, and last the picture")
    try:
        *files, picture = parser.parse(list(sys.argv[1:] if arguments is None else arguments)).files
        draw(files, picture)
    except ConfigError as error:
        ERR.say(*str(error).splitlines())
        return 2
    except OSError as error:
        ERR.say(f"{error.filename}: {error.strerror}")
        return 2
    OUT.say(f"drawn to {picture}")
    return 0


def draw(files: Sequence[Path], picture: Path) -> None:
    """Draw the figures of one file, or the benchmark's of several.

    Raises:
        ConfigError: Files that hold something else, or a picture that is not named as one.
        OSError: One of them cannot be read or written.
    """
    if not files or picture.suffix != ".png":
        raise ConfigError(f"{picture}: expected files of figures, and last the picture to draw, PICTURE.png.")
    result = [_read(file) for file in files]
    if len(result) > 1:
        for file, one in zip(files, result, strict=True):
            if not isinstance(one.get("cases"), list):
                raise ConfigError(f"{file}: only files of the benchmark can be drawn into one picture. Name one file.")
        result = [{"cases": [case for one in result for case in one["cases"]]}]
    for keys, drawing in DRAWINGS.items():
        if all(key in result[0] for key in keys):
            try:
                return drawing(result[0], picture)
            except (LookupError, TypeError, ValueError, AttributeError):  # what a file that is made up leads to
                break
    raise ConfigError(f"{files[0]}: no figures that a command here writes; see python -m experiments.pictures --help.")


def _read(file: Path) -> dict[str, Any]:
    try:
        result = json.loads(read_limited(file, LARGEST))
    except (ValueError, RecursionError):
        result = None
    if not isinstance(result, dict):
        raise ConfigError(f"{file}: expected a JSON object of figures that a command here writes.")
    return result


if __name__ == "__main__":
    terminal.run(main)
