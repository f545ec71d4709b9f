"""What a training holds on this process."""

import json
import resource
import sys
from typing import Any

import jax


def used(state: Any) -> str:
    """Bytes on this process of a training state's parts, and of the process at its peak, as a JSON object."""
    parts = {"layers": state.params.layers, "optimizer": state.optimizer, "warm_values": state.warm}
    # The kernel counts in KiB on Linux, in bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return json.dumps({**{name: _held(part) for name, part in parts.items()}, "peak_resident": peak})


def _held(tree: object) -> int:
    return sum(shard.data.nbytes for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
