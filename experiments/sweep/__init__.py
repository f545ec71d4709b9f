"""Many trainings of one config, over seeds and values of its keys, with medians."""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of `python -m experiments.sweep`; returns the exit code."""
    from experiments.sweep import __main__ as program  # not above, or `python -m` would find it imported before it runs

    return program.main(arguments)
