"""On which devices and cores something runs."""

import os
from dataclasses import dataclass

import jax
from jax.sharding import AxisType

import jaxmgrit as jm


@dataclass(frozen=True)
class Devices:
    """The devices of a program: those of one process, or one of every MPI rank.

    Attributes:
        count: How many.
        mpi: Whether each is that of an MPI rank of its own, rather than all of one process.
        cores: The CPU cores of the processes; None: all, or where the platform is not a CPU.
        platform: "cpu" or "gpu".
    """

    count: int = 1
    mpi: bool = False
    cores: tuple[int, ...] | None = None
    platform: str = "cpu"

    def __str__(self) -> str:
        return f"{self.count} MPI ranks" if self.mpi else f"{self.count} device{'s' * (self.count > 1)}"

    @property
    def backend(self) -> jm.Local | jm.Mesh | jm.MPI:
        """Jaxmgrit's, in a process that has these devices."""
        if self.mpi:
            return jm.MPI()
        return jm.Local() if self.count == 1 else jm.Mesh(self.mesh)

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """A mesh over the first devices of this process, with the axis `layers`."""
        first = jax.devices()[: self.count]
        return jax.make_mesh((self.count,), ("layers",), axis_types=(AxisType.Auto,), devices=first)


def available_cores() -> tuple[int, ...] | None:
    """The CPU cores that this process may use, None where the system does not say."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None


def count_cores() -> int:
    """How many CPU cores this process may use."""
    # `os.cpu_count` counts the machine's, of which a container or a scheduler may have given but some.
    return len(available_cores() or ()) or os.cpu_count() or 1


def last_cores(count: int) -> tuple[int, ...] | None:
    """The last `count` of the available cores, since the first serve the system most; None where it does not say."""
    cores = available_cores()
    return None if cores is None else cores[-count:]
