"""What runs there are: `python -m experiments.runs [FOLDER]`; two side by side: `... compare RUN RUN [--output FILE]`.

The table has a line for every run below FOLDER (`runs`), the newest last. `compare` prints how their configs differ and
how they ended, and draws their exact losses and accuracies over iterations and over seconds of training. Exit code 0:
done; 2: it cannot be done.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config.arguments import Parser, output_file, path
from experiments.config.reader import read
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.runs import terminal
from experiments.runs.folder import read_metrics
from experiments.runs.metrics import METRICS, Row
from experiments.runs.parameters import read_summary
from experiments.runs.terminal import ERR, OUT

COLUMNS = ("run", "status", "iteration", "layers", "method", "validation", "loss", "seconds")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = Parser("python -m experiments.runs", "%(prog)s [FOLDER]\n       %(prog)s compare RUN RUN [--output FILE]")
    parser.add_argument("folders", nargs="*", type=path, metavar="FOLDER", help="of runs; behind `compare`: two runs")
    parser.add_argument("--output", type=output_file, default=Path("compare.png"), help="where compare draws to")
    try:
        options = parser.parse(words)
        if options.folders[:1] == [Path("compare")]:
            if len(options.folders) != 3:
                raise ConfigError(f"compare: expected two runs, given {len(options.folders) - 1}.")
            compare(*options.folders[1:], output=options.output)
        elif len(options.folders) > 1:
            raise ConfigError(f"{options.folders[1]}: unexpected. Two runs side by side: compare RUN RUN.")
        else:
            OUT.say(*table(*options.folders or [Path("runs")]))
    except ConfigError as error:
        ERR.say(*str(error).splitlines())
        return 2
    except OSError as error:
        ERR.say(f"{error.filename}: {error.strerror}")
        return 2
    return 0


def table(folder: Path) -> list[str]:
    """A line for every run below a folder.

    Raises:
        ConfigError: There is none.
    """
    runs = [path.parent for path in folder.rglob("config.yaml") if path.is_file() and (path.parent / METRICS).exists()]
    if not runs:
        raise ConfigError(f"{folder}: no run below it. Train one: python -m experiments.train configs/level_sets.yaml")
    # A run writes its config when it begins and whenever it goes on.
    runs.sort(key=lambda run: (run / "config.yaml").stat().st_mtime)
    lines = [COLUMNS, *(_line(run, run.relative_to(folder)) for run in runs)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _line(run: Path, name: Path) -> tuple[str, ...]:
    summary, config = read_summary(run), _config(run)
    try:
        rows = read_metrics(run)
    except ValueError:  # one damaged run must not hide the others
        rows = []
    # Not the last row: that of a run that was interrupted mostly has no exact evaluation.
    exact = next((row for row in reversed(rows) if "exact_validation_accuracy" in row), {})
    accuracy, loss = (exact.get(f"exact_validation_{key}") for key in ("accuracy", "loss"))
    last = rows[-1] if rows else {}
    return (
        str(name),
        str(summary.get("status", "unfinished")),
        str(last.get("iteration", "-")),
        str(config.network.layers) if config else "?",
        config.training.method if config else "?",
        f"{accuracy:.2%}" if accuracy is not None else "-",
        f"{loss:.4g}" if loss is not None else "-",
        f"{last['seconds']:.1f}" if last.get("seconds") is not None else "-",
    )


def _config(run: Path) -> Config | None:
    """Of a run, None where this version cannot read it."""
    try:
        return read([str(run / "config.yaml")], "experiments.runs")
    except ConfigError:
        return None


def compare(*runs: Path, output: Path) -> None:
    """Print how runs differ, and draw how they went.

    Raises:
        ConfigError: One of them is no run, or has no exact evaluation.
        OSError: The picture cannot be written.
    """
    rows: dict[str, list[Row]] = {}
    # Runs in different folders may have the same name.
    names = [run.name for run in runs] if len({run.name for run in runs}) == len(runs) else list(map(str, runs))
    for name, run in zip(names, runs, strict=True):
        try:
            rows[name] = read_metrics(run)
        except ValueError as error:
            raise ConfigError(f"{error}. Name the folder of a run.") from None
        if not any(map(_is_exact, rows[name])):
            raise ConfigError(f"{run}: expected a run with an exact evaluation in its metrics.")
    if len(rows) < len(runs):
        raise ConfigError(f"{runs[0]}: given twice. Name two runs.")
    first, second = (_flat(config.model_dump()) if (config := _config(run)) else {} for run in runs)
    # A dict, where a set would lose the order of the config.
    differing = [key for key in {**first, **second} if first.get(key) != second.get(key) and key != "output.folder"]
    OUT.say(*(f"{key}: {first.get(key)} | {second.get(key)}" for key in differing or ["(the configs are the same)"]))
    OUT.say("", *table_of(rows))
    from experiments.runs.pictures import comparison  # Matplotlib is slow to import

    comparison.draw({name: [row for row in all_rows if _is_exact(row)] for name, all_rows in rows.items()}, output)
    OUT.say("", f"drawn to {output}")


def _is_exact(row: Row) -> bool:
    """Whether a row holds an exact evaluation, all of it finite."""
    return None not in map(row.get, ("exact_validation_loss", "exact_validation_accuracy", "seconds"))


def table_of(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """How runs ended."""
    lines = []
    for name, all_rows in rows.items():
        end = next(row for row in reversed(all_rows) if _is_exact(row))
        lines.append(
            f"{name}: iteration {end['iteration']}, exact validation accuracy {end['exact_validation_accuracy']:.2%}, "
            f"loss {end['exact_validation_loss']:.4g}, {end['seconds']:.1f} s"
        )
    return lines


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


if __name__ == "__main__":
    terminal.run(main)
