"""The crash suite, reduced; the full one is `python -m tests.processes.crash`."""

import pytest

from processes import launch
from processes.crash import UNDER, crash

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("under", UNDER)
def test_a_killed_training_goes_on_as_if_nothing_had_happened(under, tmp_path):
    if under == "mpi":
        launch.needs_mpi()
    crash(under, kills=2 if under == "local" else 1, seed=1, place=tmp_path)
