"""A long run: constant memory, no recompilation. In full: JAXMGRIT_SOAK=20000 pytest tests/experiments/test_soak.py.

In full, the resident size may grow by less than 1 % after the first tenth of the run; the reduced run is too short to
tell a leak from the allocator's warm-up, so there a leak of more than 64 KiB in 100 iterations fails.
"""

import os

import jax
import pytest
from helpers import networks as nets

from experiments.config.schema import Config
from experiments.problems import level_sets
from experiments.processes.interruption import Interruption
from experiments.training.loop import Loop
from experiments.training.records import Silent

pytestmark = pytest.mark.slow

ITERATIONS = int(os.environ.get("JAXMGRIT_SOAK", "2000"))
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident():
    """Bytes of memory this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


class Watcher(Silent):
    """Looks at memory and compilations after every row."""

    def __init__(self, compiled):
        self.sizes, self.compiled, self.counts = [], compiled, []

    def row(self, row):
        self.counts.append(len(self.compiled))
        if row["iteration"] % 100 == 0:
            self.sizes.append(resident())


def test_memory_is_constant_and_nothing_is_compiled_after_the_first_steps():
    config = Config.model_validate(
        {
            "iterations": ITERATIONS,
            "problem": {"name": "level_sets", "train_per_class": 8, "validation_per_class": 4},
            "network": {"layers": 16, "width": 3},
            "training": {"schedule": "predict_then_sweep"},
            "solver": {"levels": 2, "coarse_params": "average", "coarse_step": "midpoint"},
            "evaluation": {"every": 50},
            "checkpoints": {"every": 100},
            "dtype": "float64" if jax.config.jax_enable_x64 else "float32",
        }
    )
    with nets.compilations() as compiled:
        loop, watcher = Loop(config, level_sets.load(config.problem, 0)), Watcher(compiled)
        loop.run(watcher, Interruption(loop.trainer.backend))
    assert len(watcher.counts) == ITERATIONS + 1
    late = watcher.counts[-2] - watcher.counts[0]  # all but the final evaluation of everything
    assert late == 0, compiled[watcher.counts[0] :]
    start, end = watcher.sizes[len(watcher.sizes) // 10], watcher.sizes[-2]
    print(f"{ITERATIONS} iterations: resident size {start / 2**20:.1f} -> {end / 2**20:.1f} MiB")
    if ITERATIONS >= 20_000:
        assert end <= 1.01 * start
    else:
        middle = watcher.sizes[len(watcher.sizes) // 2]
        assert end - middle <= 64 * 1024 * (len(watcher.sizes) // 2)
