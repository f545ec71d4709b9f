"""Two ranks train as optax alone and as conventional training do, by every optimiser, and scan as one device does."""

import sys
from pathlib import Path

import pytest
from helpers import optimizers as opts

from processes import launch

pytestmark = pytest.mark.slow


def test_two_ranks_train_and_scan_as_one_device_does():
    launch.needs_mpi()
    optimizers = len(opts.OPTIMIZERS) - len(opts.ALIKE) - 1  # of the line searches one is enough
    assert optimizers >= 40
    program = str(Path(__file__).parent / "trainers.py")
    printed = launch.run_all([["mpirun", "-n", "2", sys.executable, program]])
    for rank in range(2):
        # What has failed is named above the line that is missing.
        done = f"rank {rank}: {optimizers + 6} cases, {optimizers} of them optimisers, 0 failed"
        assert done in printed, printed
