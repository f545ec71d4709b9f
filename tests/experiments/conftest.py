"""A tiny training, run once, and copies of its folder as if it had crashed at its end."""

import shutil

import jax
import pytest
from helpers.runs import TINY

from experiments import problems
from experiments.config.reader import read_run
from experiments.runs.binding import Binding
from experiments.runs.checkpoints import Checkpoints
from experiments.train import main
from experiments.training.session import Session


@pytest.fixture(autouse=True)
def _precision():
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    file = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    file.write_text(TINY)
    return str(file)


@pytest.fixture(scope="session")
def undisturbed(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    before = jax.config.jax_enable_x64
    assert main([tiny, "--output.folder", str(folder)]) == 0
    jax.config.update("jax_enable_x64", before)
    return folder


@pytest.fixture
def finished(undisturbed, tmp_path):
    """A copy of the undisturbed run."""
    return shutil.copytree(undisturbed, tmp_path / "finished")


@pytest.fixture
def crashed(finished):
    """The undisturbed run as if it had crashed at its end: its last lines half written, its results not."""
    for name in ("parameters.npz", "summary.json"):
        (finished / name).unlink()
    with (finished / "metrics.jsonl").open("ab") as file:
        file.write(b'{"iteration": 15, "inexact_l')
    return finished


@pytest.fixture(scope="session")
def training(undisturbed):
    """The undisturbed run's config and data, and its session, which tells what a checkpoint is like."""
    config, _ = read_run(["--resume", str(undisturbed)], "experiments.train")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    data = problems.load(config.problem, config.seed)
    session = Session(config, data)
    session.like({}, 0)
    jax.config.update("jax_enable_x64", before)
    return config, data, session


@pytest.fixture(scope="session")
def checkpoints_of(training):
    """From a folder to its checkpoints."""
    config, data, _ = training
    binding = Binding(config, data)
    return lambda folder: Checkpoints(folder, 3, binding)
