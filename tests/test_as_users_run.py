"""The suite asks XLA to compile quickly; a selection is repeated with the optimisations that users have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SELECTION = [
    "tests/test_laws.py",
    "tests/test_reference.py",
    "tests/backend/test_backends.py::test_twenty_iterations_of_training_are_those_of_one_device",
]


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "0", reason="the suite itself runs with all optimisations"
)
def test_laws_the_reference_case_and_trainings_hold_with_all_optimisations():
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *SELECTION]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
