"""What a training goes on from, in memory; `experiments.runs.checkpoints` keeps it on disk."""

from typing import Any, NamedTuple

import jaxmgrit as jm


class Checkpoint(NamedTuple):
    """What a training goes on from.

    Attributes:
        snapshot: Of the trainer's state.
        loop: What the loop keeps besides, a `Course`: a JSON object.
    """

    snapshot: jm.Snapshot
    loop: dict[str, Any]

    @property
    def iteration(self) -> int:
        """How many updates its parameters have had."""
        return int(self.snapshot.iteration)


class Refused(ValueError):
    """A checkpoint that cannot be used; the message says which and why."""
