"""Training by real processes: the same metrics, nothing goes on alone, and wrong launches are told apart at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from experiments.runs import folder as runs
from processes import launch

TINY = """
name: tiny
dtype: float64
iterations: 5
problem: {name: level_sets, train_per_class: 20, validation_per_class: 10}
network: {layers: 19, width: 4}
optimizer: {learning_rate: 0.02, anticipate: 0.1}
training: {schedule: predict_then_sweep}
solver: {coarsening_factor: 4, levels: 2, coarse_params: average, coarse_step: midpoint}
evaluation: {every: 4}
checkpoints: {every: 2}
output: {pictures: false}
"""
FAILING = str(Path(__file__).parent / "failing.py")
MPI = ["--backend.kind", "mpi"]
RUNNING = "  8  "  # a row of the table on the terminal: so many iterations are done

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    file = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    file.write_text(TINY)
    return str(file)


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """The metrics of one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    launch.run_all([[sys.executable, "-m", "experiments.train", tiny, "--output.folder", str(folder)]])
    return runs.read_metrics(folder)


def assert_same(folder, alone):
    for row, expected in zip(runs.read_metrics(folder), alone, strict=True):
        expected = {key: value for key, value in expected.items() if key != "seconds"}
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-10, abs=1e-13)


def ranks(count, *words, program=("-m", "experiments.train")):
    return [["mpirun", "-n", str(count), sys.executable, *program, *words]]


def processes(count, *words, program=("-m", "experiments.train"), devices=1):
    where = ["--backend.coordinator", f"localhost:{launch.free_port()}", "--backend.processes", str(count)]
    where += ["--backend.devices", str(devices)] if devices > 1 else []
    command = [sys.executable, *program, *words, *where, "--backend.process"]
    return [[*command, str(i)] for i in range(count)]


def test_a_grid_of_ranks_gives_the_metrics_of_one_device(tiny, alone, tmp_path):
    launch.needs_mpi()
    folder = tmp_path / "run"
    said = launch.run_all(ranks(4, tiny, *MPI, "--backend.data", "2", "--output.folder", str(folder)))
    assert "4 x cpu (mpi, the batch in 2 parts)" in said
    assert_same(folder, alone)


@pytest.mark.parametrize("devices", [1, 2])
def test_connected_processes_give_the_metrics_of_one_device(tiny, alone, tmp_path, devices):
    folder = tmp_path / "run"
    data = ["--backend.data", "2"] if devices == 2 else []
    said = launch.run_all(processes(2, tiny, *data, "--output.folder", str(folder), devices=devices))
    assert f"{2 * devices} x cpu (mesh over 2 processes" in said
    assert said.count("folder:") == 1, "only the first process prints"
    assert_same(folder, alone)


def kill(index, variable, by=signal.SIGKILL):
    """Send a signal to the process of this index as soon as training goes on."""

    def meanwhile(started, out):
        deadline = time.monotonic() + 120
        while RUNNING not in out.read_text(errors="replace"):
            assert all(p.poll() is None for p in started) and time.monotonic() < deadline, out.read_text()
            time.sleep(0.2)
        os.kill(started[index].pid if variable is None else process_of(variable, index), by)

    return meanwhile


def process_of(variable, index):
    """The training process that has this rank in its environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            own = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"experiments.train" in words and b"mpirun" not in words and f"{variable}={index}".encode() in own:
            return int(folder.name)
    raise AssertionError(f"no process with {variable}={index}")


LONG = ["--iterations", "1000000"]


def test_a_killed_rank_ends_all_with_a_message_that_names_it(tiny, tmp_path):
    launch.needs_mpi()
    command = ranks(3, tiny, *MPI, *LONG, "--output.folder", str(tmp_path / "run"))
    codes, said = launch.outcome(command, patience=60.0, meanwhile=kill(1, "PMI_RANK"))
    assert codes[0], said
    assert "rank 1 of 3 (PID" in said and f"--resume {tmp_path / 'run'}" in said, said
    assert "rank 0 of 3" not in said and "rank 2 of 3" not in said, said


def stop_rank_1(started, out):
    """Stop a rank as soon as training goes on, and wait until it is said."""
    kill(1, "PMI_RANK", signal.SIGSTOP)(started, out)
    deadline = time.monotonic() + 60
    while "is stopped (by SIGSTOP or a debugger)" not in out.read_text(errors="replace"):
        assert time.monotonic() < deadline, out.read_text()
        time.sleep(0.2)


def test_a_stopped_rank_is_named_within_a_minute_and_ended_if_the_config_says_so(tiny, tmp_path):
    launch.needs_mpi()
    words = [tiny, *MPI, *LONG, "--backend.patience", "20", "--output.folder", str(tmp_path / "run")]
    codes, said = launch.outcome(ranks(2, *words), patience=60.0, meanwhile=stop_rank_1)
    assert codes[0], said
    assert "has been stopped for 20 s (backend.patience) and is ended." in said, said
    assert "rank 1 of 2 (PID" in said and f"--resume {tmp_path / 'run'}" in said, said


def test_the_coordinator_listens_on_the_named_address_alone(tiny, tmp_path):
    command = processes(2, tiny, *LONG, "--output.folder", str(tmp_path / "run"))
    port = int(command[0][command[0].index("--backend.coordinator") + 1].rpartition(":")[2])
    seen = []

    def look(started, out):
        kill(0, None, signal.SIGCONT)(started, out)  # waits until training goes on, and does no harm
        seen.extend(listening(port))
        for process in started:
            process.terminate()

    launch.outcome(command, patience=60.0, meanwhile=look)
    assert seen and all(address in LOOPBACK for address in seen), seen


LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


def listening(port):
    """The addresses, in hexadecimal as Linux has them, on which a port listens."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return [own.partition(":")[0] for _, own, _, state, *_ in lines if own.endswith(f":{port:04X}") and state == "0A"]


def test_a_killed_process_ends_all_with_a_message_that_names_it(tiny, tmp_path):
    command = processes(2, tiny, *LONG, "--output.folder", str(tmp_path / "run"))
    codes, said = launch.outcome(command, patience=60.0, meanwhile=kill(1, None))
    assert codes == [1, -signal.SIGKILL], said
    assert "process 1 of 2 (PID" in said and "process 0 of 2 stopped: it lost contact with another one" in said, said
    assert said.count(f"--resume {tmp_path / 'run'}") == 2, said


@pytest.mark.parametrize("kind", ["ranks", "processes"])
def test_one_that_raises_ends_all(kind, tiny, tmp_path):
    words = [tiny, *LONG, "--output.folder", str(tmp_path / "run")]
    if kind == "ranks":
        launch.needs_mpi()
        command = ranks(2, *words, *MPI, program=(FAILING,))
    else:
        command = processes(2, *words, program=(FAILING,))
    codes, said = launch.outcome(command, patience=60.0)
    assert all(codes), f"{codes}: {said}"
    assert f"{'rank' if kind == 'ranks' else 'process'} 1 of 2 stopped: RuntimeError: something broke." in said
    assert f"--resume {tmp_path / 'run'}" in said


def test_different_configs_are_told_apart_before_anything_starts(tiny, tmp_path):
    launch.needs_mpi()
    train = [sys.executable, "-m", "experiments.train", tiny, *MPI, "--output.folder", str(tmp_path / "run")]
    command = ["mpirun", "-n", "1", *train, ":", "-n", "1", *train, "--optimizer.learning-rate", "0.03"]
    codes, said = launch.outcome([command])
    assert codes[0] == 2, said
    assert said.count("rank 1 has another config than rank 0") == 1
    assert "-optimizer.learning_rate: 0.02" in said and "+optimizer.learning_rate: 0.03" in said
    assert not (tmp_path / "run").exists()


WRONG = {
    "no backend for several": (2, [], "backend.kind = 'local': expected 'mpi', as 2 ranks were started"),
    "unknown key": (2, [*MPI, "--solver.cylces", "3"], "--solver.cylces: unknown option"),
    "more ranks than intervals": (
        3,
        [*MPI, "--network.layers", "8"],
        "8 layers in intervals of 4 are 2 intervals, fewer than the 3 devices",
    ),
    "batch that cannot be split": (3, [*MPI, "--backend.data", "3"], "into 3 equal parts, but there are 100 samples"),
    "grid that cannot be made": (2, [*MPI, "--backend.data", "3"], "data=3 does not divide the 2 rank"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_launches_are_refused_once_and_leave_no_folder(case, tiny, tmp_path):
    launch.needs_mpi()
    count, words, message = WRONG[case]
    codes, said = launch.outcome(ranks(count, tiny, *words, "--output.folder", str(tmp_path / "run")))
    assert codes[0] == 2, said
    assert said.count(message) == 1, said
    assert "Traceback" not in said and not (tmp_path / "run").exists()


def test_mpi_without_mpirun_is_one_rank_and_says_so(tiny, tmp_path):
    launch.needs_mpi()
    words = ["-m", "experiments.train", tiny, *MPI, "--iterations", "1", "--output.folder", str(tmp_path / "run")]
    said = launch.run_all([[sys.executable, *words]])
    assert "1 x cpu (mpi, one rank: for more, start with mpirun -n RANKS)" in said


ANOTHER_MPI = """
import shutil, sys
from pathlib import Path
from mpi4py import MPI
folder = Path(sys.argv[1])
own = next(line.split()[-1] for line in open("/proc/self/maps") if "/libmpi.so" in line)
other = shutil.copy(own, folder / "libmpi.so.99")
(folder / "mpi4jax.py").write_text(f"import ctypes; ctypes.CDLL({str(other)!r})")
sys.path.insert(0, str(folder))
import jaxmgrit as jm
try:
    jm.MPI()
except RuntimeError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which libraries a process has loaded")
def test_mpi4jax_built_against_another_mpi_is_named(tmp_path):
    launch.needs_mpi()
    said = launch.run_all([[sys.executable, "-c", ANOTHER_MPI, str(tmp_path)]])
    assert "mpi4py and mpi4jax use different MPI libraries" in said and "libmpi.so.99" in said
    assert "--no-cache-dir mpi4jax" in said
