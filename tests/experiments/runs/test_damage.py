"""Random damages of a run's files, a few of them; the full count is `python -m tests.helpers.damage`."""

import pytest
from helpers import damage


@pytest.fixture(scope="module")
def run(undisturbed):
    return damage.example(undisturbed)


def test_a_damaged_checkpoint_is_refused_or_what_was_written(run):
    used = damage.repeat(damage.checkpoint, run, range(300), seed=0)
    assert 0 < used < 60


@pytest.mark.slow
def test_a_damaged_folder_is_read_truly_or_refused_by_name(run):
    used = damage.repeat(damage.folder, run, range(25), seed=0)
    assert 0 < used < 25
