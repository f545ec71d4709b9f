"""The same results from MPI ranks and from `jax.distributed` processes as from one device."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from processes import launch

PROGRAM = str(Path(__file__).parent / "program.py")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Results on one device."""
    out = tmp_path_factory.mktemp("local") / "out.npz"
    launch.run_all([[sys.executable, PROGRAM, str(out), "--backend", "local"]])
    return np.load(out)


SOLVE, TRAINING = "solve", "sgd predict"  # the first two results


def assert_same(out: Path, local, last: str | None) -> None:
    """Equal to rounding.

    Adam divides small numbers, L-BFGS accumulates, and mismatches of a good prediction are small differences: they may
    differ a little more.
    """
    values = np.load(out)
    shown = {SOLVE: SOLVE, TRAINING: (SOLVE, TRAINING, "rough"), None: ""}[last]
    names = {name for name in local.files if name.startswith(shown)}
    assert set(values.files) == names
    for name in sorted(names):
        tolerance = 1e-10 if name.startswith(("adam", "lbfgs", "sgd rough")) else 1e-12
        np.testing.assert_allclose(
            values[name], local[name], rtol=0, atol=tolerance * max(np.abs(local[name]).max(), 1e-300), err_msg=name
        )


# Everything on two, a solve on others; 2 x 2 grids of ranks and of devices are trained in test_training.py.
@pytest.mark.parametrize(("ranks", "last"), [(1, SOLVE), (2, None), (4, TRAINING)])
def test_mpi_ranks_give_the_results_of_one_device(ranks, last, local, tmp_path):
    launch.needs_mpi()
    out = tmp_path / "out.npz"
    launch.mpirun(ranks, PROGRAM, str(out), "--backend", "mpi", *(["--until", last] if last else []))
    assert_same(out, local, last)


@pytest.mark.parametrize(("devices", "data", "last"), [(1, 1, None), (2, 2, SOLVE)])
def test_two_distributed_processes_give_the_results_of_one_device(devices, data, last, local, tmp_path):
    out = tmp_path / "out.npz"
    options = ["--backend", "mesh", "--devices", str(devices), "--data", str(data)]
    launch.distributed(2, PROGRAM, str(out), *options, *(["--until", last] if last else []))
    assert_same(out, local, last)


def test_two_ranks_get_the_same_advice_down_to_the_measured_seconds():
    launch.needs_mpi()
    printed = launch.mpirun(2, str(Path(__file__).parent / "advice.py"), limit=120)
    assert "2 ranks agree on" in printed
