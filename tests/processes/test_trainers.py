"""Two ranks train as optax alone and as conventional training do."""

import sys
from pathlib import Path

import pytest

from processes import launch

pytestmark = pytest.mark.slow


def test_two_ranks_train_as_one_device_does():
    launch.needs_mpi()
    program = str(Path(__file__).parent / "trainers.py")
    said = launch.run_all([["mpirun", "-n", "2", sys.executable, program]])
    assert "rank 0: 2 optimisers" in said and "rank 1: 2 optimisers" in said
