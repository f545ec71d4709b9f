"""The processes of a training, connected: ranks of MPI, or processes of `jax.distributed`."""

import contextlib
import ipaddress
import os
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.config.schema import Backend
from experiments.errors import AgreedError, ConfigError
from experiments.processes.interruption import end_at_once
from experiments.processes.job import ALONE, Job
from experiments.processes.launchers import launched

CONNECTING = 60  # seconds that processes wait for each other at the start
ENDING = 600  # and at the end, where the first draws pictures
HEARTBEAT = 20  # seconds after which a process of `jax.distributed` that is silent counts as lost, by default


def ranks(asked: bool) -> Job:
    """The ranks of MPI, where a launcher started several and mpi4py works; else this process alone.

    Args:
        asked: Whether the config says that there are ranks: then MPI is asked, whatever the environment says. Else only
            where an mpirun has started this process, so that one rank speaks for all of them.
    """
    # An MPI that was not asked for and belongs to another launcher may end the process while it is imported.
    start = launched()
    if not (asked or start.several and start.variable.startswith(("PMI_", "OMPI_"))):
        return ALONE
    end_at_once()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):  # what that leads to, `connect` says
        return ALONE
    comm = MPI.COMM_WORLD
    if comm.Get_size() == 1:
        return ALONE

    def abort(code: int) -> NoReturn:
        comm.Abort(code)
        os._exit(code)

    return Job(comm.Get_rank(), comm.Get_size(), "rank", comm.allgather, abort)


def connect(job: Job, section: Backend) -> Job:
    """All processes of the training, connected by `jax.distributed` where the config asks for that.

    Args:
        job: The ranks of MPI, or this process alone.
        section: The config's `backend`.

    Raises:
        ConfigError: They cannot be connected, or others were started that would train without knowing of this one.
    """
    if section.coordinator is None:
        if job.count > 1 and section.kind != "mpi":
            raise AgreedError(
                f"backend.kind = {section.kind!r}: expected 'mpi', as {job.count} ranks were started; each would train "
                "a network of its own. Give --backend.kind mpi, or --backend.coordinator mpi4py for jax.distributed.",
                silent=not job.is_first,
            )
    else:
        _initialise(job, section)
        # Ranks of MPI gather and abort by MPI, also when jax.distributed connects them.
        if job.count == 1:
            job = Job(jax.process_index(), jax.process_count(), "process", _gather, lambda code: os._exit(code))
    _refuse_strangers(job)
    return replace(job, patience=section.patience)


def _refuse_strangers(job: Job) -> None:
    """Raise a ConfigError where a launcher says that there are more processes than know of each other."""
    start = launched()
    count, variable = start.count, start.variable
    if count is not None and count <= job.count or count is None and job.count > 1:
        return
    others = f"{count} processes were started together" if count else "it is one of several started together"
    if variable.startswith(("PMI_", "OMPI_")):
        raise ConfigError(
            f"{variable} is set, so {others}, but they do not know of each other: mpi4py is not installed or was built "
            "for another MPI. Install it where mpirun's own mpicc comes first in PATH: pip install --no-cache-dir "
            f"mpi4py. To train in this process alone, unset {variable}."
        )
    raise ConfigError(
        f"{variable} = {os.environ[variable]}: {others}, but they do not know of each other and each would train a "
        "network of its own. Start one (srun -n 1, say); or give --backend.coordinator detect (SLURM, Open MPI), or "
        "--backend.kind mpi where mpi4py belongs to the launcher's MPI. To train in this process alone, unset "
        f"{variable}."
    )


def _initialise(job: Job, section: Backend) -> None:
    """Call `jax.distributed.initialize` as the config says; process 0 listens on the address that was named only."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    end_at_once()
    options: dict[str, Any] = {}
    if section.coordinator == "mpi4py":
        address = _own_address(job)
        options = {"cluster_detection_method": "mpi4py", "coordinator_address": address}
        options |= {"coordinator_bind_address": address}
    elif section.coordinator != "detect":
        options = {"coordinator_address": section.coordinator, "coordinator_bind_address": section.coordinator}
        options |= {"num_processes": section.processes, "process_id": section.process}
        if section.process == 0:
            _check_address(str(section.coordinator))
            _warn_of_loopback(str(section.coordinator))
    try:
        with _ended_after(CONNECTING, section):
            jax.distributed.initialize(
                **options,
                initialization_timeout=2 * CONNECTING,
                heartbeat_timeout_seconds=HEARTBEAT if section.patience is None else max(1, round(section.patience)),
                shutdown_timeout_seconds=ENDING,
            )
        # Arrays take connections of their own, between the addresses that the hosts' own names mean.
        multihost_utils.process_allgather(np.zeros((), np.int32))
    except (ValueError, RuntimeError, TypeError) as error:
        raise ConfigError(_unconnected(section, str(error).splitlines()[0])) from None


def _unconnected(section: Backend, reason: str) -> str:
    return (
        f"backend.coordinator = {section.coordinator!r}: the processes were not connected within {CONNECTING} seconds "
        f"({reason}). 'detect' knows the jobs of SLURM and Open MPI, 'mpi4py' any MPI; else give every process the "
        "coordinator's HOST:PORT (an address of the host of process 0, and a free port on it), --backend.processes and "
        "its own --backend.process. Processes on different hosts also connect to each other by the names of their "
        f"hosts: this one is {socket.gethostname()}, which means {_meaning(socket.gethostname())} here, and the others "
        "must reach it there (see /etc/hosts)."
    )


@contextlib.contextmanager
def _ended_after(seconds: float, section: Backend) -> Iterator[None]:
    """End this process where connecting takes longer; JAX would at its own limit, by an abort with a stack trace."""

    def end() -> None:
        print("config error:", _unconnected(section, "not all have come"), sep="\n  ", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check_address(coordinator: str) -> None:
    """Raise a ConfigError where this host cannot listen on an address: JAX would crash."""
    host, _, port = coordinator.rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"backend.coordinator = {coordinator!r}: process 0 cannot listen there: {said}. Give an address or a name "
            "of the host of process 0, and a free port on it."
        ) from None


def _own_address(job: Job) -> str:
    """A free port of rank 0's host, by a name that all ranks know: localhost where all are on one host."""
    hosts = job.gather(socket.gethostname())
    host = "localhost" if len(set(hosts)) == 1 else hosts[0]
    port = ""
    if job.is_first:
        # The system chooses the port; it is given back at once, for JAX to listen on it.
        with socket.create_server(("", 0)) as free:
            port = str(free.getsockname()[1])
    return f"{host}:{job.gather(port)[0]}"


def _meaning(host: str) -> str:
    try:
        return ", ".join(sorted({str(info[4][0]) for info in socket.getaddrinfo(host, None)}))
    except OSError:
        return "no address"


def _warn_of_loopback(coordinator: str) -> None:
    """Say so where the coordinator's name is not localhost, but means this host's own loopback here."""
    host = coordinator.rpartition(":")[0].strip("[]")
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
        # Without the scope that IPv6 addresses may carry, as in fe80::1%eth0.
        loopback = all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in addresses)
    except (OSError, ValueError):
        return
    # Debian, for one, gives the host's own name the address 127.0.1.1 in /etc/hosts.
    if loopback and host not in (*addresses, "localhost"):
        print(
            f"backend.coordinator = {coordinator!r}: {host} is {', '.join(map(str, sorted(addresses)))} on this host, "
            "where no other host can connect. For processes on other hosts, name an address that they can reach.",
            file=sys.stderr,
        )


def _gather(text: str) -> list[str]:
    own = np.frombuffer(text.encode(), np.uint8)
    # Only arrays of one shape are gathered: first the sizes, then texts padded to the longest.
    sizes = multihost_utils.process_allgather(np.array(own.size, np.int32))
    padded = np.zeros(int(np.max(sizes)), np.uint8)
    padded[: own.size] = own
    rows = np.reshape(multihost_utils.process_allgather(padded), (-1, padded.size))
    return [bytes(row[:size]).decode() for row, size in zip(rows, np.reshape(sizes, -1), strict=True)]
