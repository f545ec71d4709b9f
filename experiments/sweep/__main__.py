"""Train over seeds and values: `python -m experiments.sweep CONFIG --seeds 0 1 2 --vary KEY VALUE ... [--key VALUE]`.

Each --vary names a key of the config and its values; all combinations are trained, with every seed, one after another,
each in a folder of its own under --folder. A sweep that was interrupted goes on when it is started again; what is done
is not done again. Prints a table of medians (and the range over the seeds), and writes it to sweep.json. Exit code 0:
done; 2: it cannot be run; else that of a training that was interrupted.
"""

import itertools
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.config.arguments import Parser, at_least, path
from experiments.config.describe import fields, flag
from experiments.config.reader import FREE, read
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.foundation.files import write_output
from experiments.foundation.numbers import is_number
from experiments.processes.launchers import refuse_several
from experiments.runs import terminal
from experiments.runs.parameters import read_summary
from experiments.runs.terminal import ERR, OUT

SHOWN = {  # of a summary: title and format
    "exact_validation_accuracy": ("validation", "{:.2%}"),
    "exact_validation_loss": ("validation loss", "{:.4g}"),
    "exact_train_loss": ("training loss", "{:.4g}"),
    "seconds": ("seconds", "{:.1f}"),
}
STOPPED = 1  # exit code of a training that went wrong


class Member(NamedTuple):
    """One training of a sweep.

    Attributes:
        values: Of the keys that vary, as they were given.
        words: Its command line.
        config: What that says.
        folder: Where it goes.
    """

    values: tuple[str, ...]
    words: list[str]
    config: Config
    folder: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    usage = "%(prog)s CONFIG [--seeds N ...] [--vary KEY VALUE ...] [--folder F] [--key VALUE ...]"
    parser = Parser("python -m experiments.sweep", usage)
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[0, 1, 2], help="every combination with each")
    parser.add_argument("--vary", nargs="+", action="append", default=[], metavar="WORD", help="a key and its values")
    parser.add_argument("--folder", type=path, help="of all trainings; without it runs/sweep-NAME")
    try:
        options, rest = parser.split(sys.argv[1:] if arguments is None else arguments)
        refuse_several("experiments.sweep")
        keys, members = plan(rest, options.vary, options.seeds, options.folder)
        code = train(members)
        if code in (0, STOPPED):
            report(keys, members)
        return 0 if code == STOPPED else code
    except ConfigError as error:
        ERR.say("config error:", *(f"  {line}" for line in str(error).splitlines()))
        return 2


def plan(
    rest: list[str], vary: list[list[str]], seeds: list[int], folder: Path | None
) -> tuple[list[str], list[Member]]:
    """The keys that vary, and every training, checked before the first begins.

    Raises:
        ConfigError: A key that is unknown, or given twice; a combination that cannot be run.
    """
    keys = [words[0].lstrip("-").replace("-", "_") for words in vary]
    for key, words in zip(keys, vary, strict=True):
        if key not in fields():
            raise ConfigError(f"--vary {words[0]}: unknown key. Write it as in the config: section.key.")
        if keys.count(key) > 1 or key in ("seed", "output.folder"):
            raise ConfigError(f"--vary {words[0]}: given twice, or decided by the sweep. Leave it out.")
        if len(words) < 2:
            raise ConfigError(f"--vary {words[0]}: expected values after it.")
    folder = folder or Path("runs") / f"sweep-{read(rest, 'experiments.sweep').name}"
    members = []
    for values in itertools.product(*[words[1:] for words in vary]):
        for seed in seeds:
            chosen = [word for key, value in zip(keys, values, strict=True) for word in (f"{flag(key)}={value}",)]
            pairs = [f"{key.rpartition('.')[2]}={value}" for key, value in zip(keys, values, strict=True)]
            name = re.sub(r"[^A-Za-z0-9._=,+-]", "_", ",".join([*pairs, f"seed={seed}"]))
            words = [*rest, *chosen, "--seed", str(seed), "--output.folder", str(folder / name)]
            members.append(Member(values, words, read(words, "experiments.sweep"), folder / name))
    if len({member.folder for member in members}) < len(members):
        raise ConfigError("--seeds, --vary: expected each value once. Leave out what is there twice.")
    return keys, members


def train(members: Sequence[Member]) -> int:
    """Train what is not done yet; the exit code of the last training.

    Raises:
        ConfigError: A folder holds another training.
    """
    code = 0
    for number, member in enumerate(members, 1):
        summary = _summary(member)
        OUT.say(f"{number} of {len(members)}: {member.folder.name}" + (", done before" if summary else ""))
        if summary:
            continue
        words = [*member.words, "--resume", "auto", "--output.quiet", "true"]
        # A process for each: JAX fixes its devices when it first computes, and one that crashes ends no other.
        code = subprocess.run([sys.executable, "-m", "experiments.train", *words]).returncode
        # A training that went wrong is a result; a signal, or a config that cannot be run, ends the sweep.
        if code not in (0, STOPPED):
            return code
    return code


def _summary(member: Member) -> Mapping[str, Any] | None:
    """What a training that is done has ended with; None for one that is not.

    Raises:
        ConfigError: The folder holds another training.
    """
    try:
        before = read([str(member.folder / "config.yaml")], "experiments.sweep")
    except ConfigError:
        return None
    summary = read_summary(member.folder)
    own, other = (one.model_dump(exclude={"output", "backend", "checkpoints"}) for one in (member.config, before))
    if own != other:
        key = next(key for key in own if own[key] != other[key])
        hint = "more of them go on" if key in FREE else "name another --folder"
        if summary.get("status") == "finished" and key not in FREE:
            raise ConfigError(f"{member.folder}: holds another training: {key} differs. Remove it, or {hint}.")
        return None
    done: Mapping[str, Any] | None = summary if summary.get("status") in ("finished", "stopped") else None
    return done


def report(keys: Sequence[str], members: Sequence[Member]) -> None:
    """Print medians over the seeds, and write them beside the trainings."""
    rows = []
    # Members of the same values stand together, as seeds are the inner loop of `plan`.
    for values, group in itertools.groupby(members, key=lambda member: member.values):
        summaries = [_summary(member) or {} for member in group]
        good = [summary for summary in summaries if summary.get("status") == "finished"]
        row: dict[str, Any] = dict(zip(keys, values, strict=True)) | {"runs": len(summaries), "finished": len(good)}
        for key in SHOWN:
            values = [summary[key] for summary in good if is_number(summary.get(key))]
            if values:
                row[key] = {"median": statistics.median(values), "least": min(values), "most": max(values)}
        rows.append(row)
    OUT.say("", *_table(keys, rows))
    path = members[0].folder.parent / "sweep.json"
    write_output(path, json.dumps(rows, indent=1) + "\n")
    OUT.say("", f"medians over the seeds (least to most); {path}")


def _table(keys: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns of equal width."""
    cells = [[*keys, "finished", *(title for title, _ in SHOWN.values())]]
    for row in rows:
        line = [str(row[key]) for key in keys] + [f"{row['finished']} of {row['runs']}"]
        for key, (_, form) in SHOWN.items():
            figures = row.get(key)
            shown = [form.format(figures[of]) for of in ("median", "least", "most")] if figures else []
            line.append("{} ({} to {})".format(*shown) if shown else "-")
        cells.append(line)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]


if __name__ == "__main__":
    terminal.run(main)
