"""A record of ratios, and what has become slower since."""

import json
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from experiments.errors import ConfigError

LIMIT = 1.10  # of a ratio over the recorded one


class Change(NamedTuple):
    """One ratio beside the recorded one.

    Attributes:
        name: what was measured.
        before: recorded ratio; None: it is not in the record.
        now: measured ratio; None: it is recorded but no longer measured.
    """

    name: str
    before: float | None
    now: float | None

    @property
    def slower(self) -> bool:
        """Whether it is slower than the limit allows; nothing to compare with is no reason to fail, losing one is."""
        if self.before is None:
            return False
        # Not by >, to which nan would be right.
        return self.now is None or not self.now <= LIMIT * self.before


def facts() -> dict[str, str]:
    """Where and with what ratios were measured."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": _processor(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "optax", "jaxmgrit")},
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def changes(recorded: Mapping[str, float], measured: Mapping[str, float]) -> list[Change]:
    """Every ratio that is in either, in the record's order, new ones last."""
    names = dict.fromkeys([*recorded, *measured])
    return [Change(name, recorded.get(name), measured.get(name)) for name in names]


def table(rows: list[Change]) -> str:
    """The ratios in columns, with a word where something is to be said."""
    lines = [f"{'time over the best sequential program':44} {'record':>7} {'now':>7}"]
    for row in rows:
        before, now = ("-" if value is None else f"{value:.3f}" for value in (row.before, row.now))
        if row.now is None:
            word = "no longer measured"
        elif row.before is None:
            word = "not in the record"
        else:
            word = f"slower by {row.now / row.before - 1:.0%}" if row.slower else ""
        lines.append(f"{row.name:44} {before:>7} {now:>7}  {word}".rstrip())
    return "\n".join(lines)


def read(file: Path) -> dict[str, Any]:
    """A record.

    Raises:
        ConfigError: There is none, or the file holds something else.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        known = {str(name): float(value) for name, value in record["ratios"].items()}
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}. Make a record with --renew.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{file}: expected a JSON object with 'ratios'. Make a record with --renew.") from None
    return {**record, "ratios": known}


def write(file: Path, ratios: Mapping[str, float]) -> None:
    """Write a record of these ratios.

    Raises:
        ConfigError: The file cannot be written.
    """
    text = json.dumps({**facts(), "ratios": {name: round(value, 4) for name, value in ratios.items()}}, indent=1)
    try:
        file.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}. Name another file with --record.") from None
