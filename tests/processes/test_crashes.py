"""The crash suite, reduced; the full one is `python -m tests.processes.crash`."""

import pytest

from processes import launch
from processes.crash import crash

pytestmark = pytest.mark.slow
ENDS = {"local": ["KILL"], "mesh": ["HUP"], "mpi": ["KILL"], "distributed": ["USR1"]}


@pytest.mark.parametrize("under", ENDS)
def test_a_training_that_was_ended_goes_on_as_if_nothing_had_happened(under, tmp_path):
    if under == "mpi":
        launch.needs_mpi()
    crash(under, ENDS[under], seed=1, place=tmp_path, iterations=20)
