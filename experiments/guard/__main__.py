"""What has become slower: `python -m experiments.guard [--renew] [--record FILE]`, about two minutes on one core.

Ratios (not times) of this library's programs to the best sequential one are measured in turns on one pinned core and
put beside a committed record of them. What is slower by more than 10 % is measured once more, since another program on
the machine may have been the cause, and the better of both counts. Exit code 0: nothing is slower; 1: something is, or
is no longer measured; 2: there is no record. With `--renew` the record is written in place of that.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.config.arguments import Parser, path
from experiments.errors import ConfigError
from experiments.guard import record
from experiments.runs import terminal
from experiments.timing import turns

RECORD = Path("docs/results/data/guard.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = Parser("python -m experiments.guard", description="What has become slower since a record was made.")
    parser.add_argument("--renew", action="store_true", help="write the record, compare nothing")
    parser.add_argument("--record", type=path, default=RECORD, metavar="FILE", help="of ratios, as JSON")
    options = parser.parse(sys.argv[1:] if arguments is None else arguments)
    try:
        known = {} if options.renew else record.read(options.record)
        print(turns.pin(), flush=True)  # before JAX starts its threads
        rows = _measured(known.get("ratios", {}))
        print(record.table(rows))
        if options.renew:
            record.write(options.record, {row.name: row.now for row in rows if row.now is not None})
            print(f"written to {options.record}")
            return 0
    except ConfigError as error:
        print(f"guard: {error}", file=sys.stderr)
        return 2
    for name, value in record.facts().items():
        if name != "date" and known.get(name) != value:
            print(f"{name}: {value}, in the record {known.get(name)}: a change may come from that")
    return int(any(row.slower for row in rows))


def _measured(known: dict[str, float]) -> list[record.Change]:
    from experiments.guard.ratios import GROUPS

    ratios: dict[str, float] = {}
    for group in GROUPS:
        measured = group()
        compared = {name: known[name] for name in measured if name in known}
        if any(row.slower for row in record.changes(compared, measured)):
            again = group()
            measured = {name: min(value, again[name]) for name, value in measured.items()}
        ratios |= measured
    return record.changes(known, ratios)


if __name__ == "__main__":
    terminal.run(main)
