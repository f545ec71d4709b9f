"""The folder a run leaves behind: files, checkpoints, pictures."""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of `python -m experiments.runs`; returns the exit code."""
    from experiments.runs import __main__ as program  # not above, or `python -m` would find it imported before it runs

    return program.main(arguments)
