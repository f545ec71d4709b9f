"""Start real processes with a time limit, and leave none behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LIMIT = 420.0  # seconds


def needs_mpi() -> None:
    """Skip where MPI is not installed; fail where it must be (in CI)."""
    missing = [name for name in ("mpi4py", "mpi4jax") if find_spec(name) is None]
    if shutil.which("mpirun", path=_path()) is None:
        missing.append("mpirun")
    if missing:
        reason = f"MPI is not installed: {', '.join(missing)} missing; `sh run test` installs it"
        if os.environ.get("JAXMGRIT_REQUIRE_MPI"):
            pytest.fail(reason)
        pytest.skip(reason)


def environment() -> dict[str, str]:
    """One device a process, this interpreter's programs first, the repository importable."""
    flags = " ".join(f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f)
    paths = {"PATH": _path(), "PYTHONPATH": str(REPOSITORY)}
    return {**os.environ, **paths, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def _path() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return int(s.getsockname()[1])


def mpirun(ranks: int, *command: str, limit: float = LIMIT) -> str:
    """Run a Python program under mpirun: what it printed."""
    return run_all([["mpirun", "-n", str(ranks), sys.executable, *command]], limit)


def distributed(processes: int, *command: str, limit: float = LIMIT) -> str:
    """Run a Python program as processes of `jax.distributed`: what they printed."""
    address = f"localhost:{free_port()}"
    options = ["--coordinator", address, "--processes", str(processes), "--process"]
    return run_all([[sys.executable, *command, *options, str(i)] for i in range(processes)], limit)


def run_all(commands: list[list[str]], limit: float = LIMIT) -> str:
    """Run commands side by side until all end well, one ends badly or time is up; then none is left."""
    codes, printed = outcome(commands, limit, patience=0.0)
    assert all(code == 0 for code in codes), f"exit codes {codes} within {limit:.0f} s:\n{printed[-4000:]}"
    return printed


def outcome(
    commands: list[list[str]],
    limit: float = LIMIT,
    patience: float = 60.0,
    meanwhile: Callable[[list[subprocess.Popen], Path], None] = lambda started, out: None,
) -> tuple[list[int | None], str]:
    """Run commands side by side, and do something meanwhile: exit codes and what they printed.

    Waits until all have ended, `patience` seconds after one has ended badly, or until time is up. Those that then still
    run have the code None.
    """
    with tempfile.NamedTemporaryFile("w+") as out:
        started = [
            subprocess.Popen(c, stdout=out, stderr=subprocess.STDOUT, env=environment(), start_new_session=True)
            for c in commands
        ]
        deadline = time.monotonic() + limit
        try:
            meanwhile(started, Path(out.name))
            while any(p.poll() is None for p in started) and time.monotonic() < deadline:
                if any(p.poll() for p in started):
                    deadline = min(deadline, time.monotonic() + patience)
                    patience = limit
                time.sleep(0.05)
            codes = [p.poll() for p in started]
        finally:
            for p in started:
                if p.poll() is None:
                    os.killpg(p.pid, signal.SIGKILL)
                p.wait()
        out.seek(0)
        return codes, out.read()
