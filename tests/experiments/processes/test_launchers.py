"""Several processes that do not know of each other never train a network each: they are refused with the remedy."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import benchmark, predict
from experiments.config.schema import Backend
from experiments.errors import AgreedError, ConfigError
from experiments.processes import connection, launchers
from experiments.processes.job import ALONE, Job
from experiments.processes.together import all_or_none
from experiments.sweep import __main__ as sweep
from experiments.training import build

ROOT = Path(__file__).parents[3]
LOCAL = Backend(kind="local")
VARIABLES = (*launchers._SIZES, *launchers._INDICES)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def of(count, index=0):
    return Job(index, count, "rank", lambda text: [text] * count, lambda code: None)


@pytest.mark.parametrize("variable", launchers._SIZES)
def test_announced_sizes(monkeypatch, variable):
    monkeypatch.setenv(variable, "3")
    assert launchers.launched() == launchers.Launched(3, variable)
    with pytest.raises(ConfigError, match=rf"{variable} .*3 processes were started together.*unset {variable}"):
        connection.connect(ALONE, LOCAL)
    with pytest.raises(ConfigError, match="3 processes were started together"):
        connection.connect(of(2), Backend(kind="mpi"))  # two know of each other, one trains alone
    assert connection.connect(of(3), Backend(kind="mpi")).count == 3
    with pytest.raises(AgreedError, match="expected 'mpi', as 3 ranks were started"):
        connection.connect(of(3), LOCAL)
    monkeypatch.setenv(variable, "1")
    assert connection.connect(ALONE, LOCAL).count == 1


@pytest.mark.parametrize("variable", launchers._INDICES)
@pytest.mark.parametrize("index", ["0", "1"])
def test_ranks_whose_number_is_not_announced(monkeypatch, variable, index):
    monkeypatch.setenv(variable, index)
    with pytest.raises(ConfigError, match=rf"{variable} .*one of several started together.*unset {variable}"):
        connection.connect(ALONE, LOCAL)
    assert connection.connect(of(2), Backend(kind="mpi")).count == 2


def test_the_innermost_launcher_counts_and_nonsense_does_not(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")  # of the daemons that an mpirun has started
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    assert launchers.launched() == launchers.Launched(1, "OMPI_COMM_WORLD_SIZE")
    for text in ("", "many", "-1", "\u00b2", "0"):
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", text)
        assert launchers.launched().variable == "SLURM_STEP_NUM_TASKS"


def test_patience_is_what_the_config_says():
    assert connection.connect(ALONE, LOCAL).patience is None
    assert connection.connect(ALONE, Backend(kind="local", patience=30.0)).patience == 30.0


def test_a_step_of_several_tasks_is_refused_before_a_folder_is_made(tmp_path):
    words = ["configs/level_sets.yaml", "--output.folder", str(tmp_path / "run")]
    environment = {**os.environ, "SLURM_STEP_NUM_TASKS": "2"}
    command = [sys.executable, "-m", "experiments.train", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "SLURM_STEP_NUM_TASKS = 2: 2 processes were started together" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.parametrize("module", [benchmark, predict, sweep])
def test_programs_of_one_process_are_not_started_several_times_at_once(module, monkeypatch, capsys):
    monkeypatch.setenv("FLUX_TASK_RANK", "1")
    assert module.main(["nothing", "--input", "x"] if module is predict else []) == 2
    assert "FLUX_TASK_RANK = 1: several processes were started together" in capsys.readouterr().err


def test_an_mpi_that_nobody_asked_for_is_not_imported(monkeypatch):
    # Such a one may end the process at once, where it belongs to another launcher.
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    for variable in ("PMIX_RANK", "SLURM_STEP_NUM_TASKS", "PMI_SIZE"):
        monkeypatch.setenv(variable, "3")
        assert connection.ranks(asked=False) == ALONE
        monkeypatch.delenv(variable)


def test_sigterm_ends_one_of_several_at_once_before_they_train(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        connection.ranks(asked=True)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_function_that_exits_in_one_of_several_ends_all(capsys):
    codes = []
    job = Job(0, 2, "rank", lambda text: [text, text], codes.append)
    with all_or_none(job, lambda: "start again"):
        sys.exit(3)
    assert codes == [1]
    assert "SystemExit: 3." in capsys.readouterr().err


@pytest.mark.parametrize("where", ["nobody.invalid:5000", "192.0.2.1:5000", "a" * 300 + ":5000", "TAKEN"])
def test_a_coordinator_that_this_host_cannot_be_is_named(where):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}" if where == "TAKEN" else where
        with pytest.raises(ConfigError, match="backend.coordinator = .*: process 0 cannot listen there: .*free port"):
            connection._check_address(where)


@pytest.mark.slow
def test_processes_that_do_not_come_are_told_of_without_a_stack_trace(tmp_path):
    program = """
import sys
from experiments import train
from experiments.processes import connection
connection.CONNECTING = 3
sys.exit(train.main(sys.argv[1:]))
"""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = ["--backend.coordinator", f"localhost:{port}", "--backend.processes", "2", "--backend.process", "0"]
    words = ["configs/level_sets.yaml", *where, "--output.folder", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("config error:") and "within 3 seconds (not all have come)" in done.stderr
    assert "stack trace" not in done.stderr and not (tmp_path / "run").exists()


def test_a_platform_that_is_not_there_is_named(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'tpu': no such file")

    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setattr("jax.devices", fail)
    with pytest.raises(
        ConfigError, match="JAX_PLATFORMS = 'tpu': expected platforms .*: Unable to .* Correct or unset"
    ):
        build.check_devices()
