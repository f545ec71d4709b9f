"""What launchers of processes (mpirun, srun and the like) say of them in the environment."""

import os
from dataclasses import dataclass

from experiments.errors import ConfigError

# How many processes were started together, the innermost launcher first: Open MPI, MPICH and its kin, MVAPICH, jsrun,
# Flux, torchrun, and SLURM, whose variable the daemons of an mpirun that srun has started hand on to their ranks.
_SIZES = (
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "JSM_NAMESPACE_SIZE",
    "FLUX_JOB_SIZE",
    "WORLD_SIZE",
    "SLURM_STEP_NUM_TASKS",
)
# Which of them this one is; Cray's aprun and HPE's PALS say no more than that.
_INDICES = (
    "OMPI_COMM_WORLD_RANK",
    "PMI_RANK",
    "PMIX_RANK",
    "MV2_COMM_WORLD_RANK",
    "JSM_NAMESPACE_RANK",
    "ALPS_APP_PE",
    "PALS_RANKID",
    "FLUX_TASK_RANK",
)


@dataclass(frozen=True)
class Launched:
    """How this process was started.

    Attributes:
        count: How many were started together; None where a launcher says which one this is, but not of how many.
        variable: The environment's variable that says so, "" where there is no launcher.
    """

    count: int | None
    variable: str

    @property
    def several(self) -> bool:
        """Whether there may be other processes."""
        return self.count != 1


def launched() -> Launched:
    """How this process was started, as the environment says: alone where it says nothing."""
    for variable in _SIZES:
        if (count := _number(variable)) is not None and count >= 1:
            return Launched(count, variable)
    for variable in _INDICES:
        if _number(variable) is not None:
            return Launched(None, variable)
    return Launched(1, "")


def refuse_several(program: str) -> None:
    """Raise a ConfigError where a launcher has started several processes of a program that knows of none but itself.

    Each would do all of it, at the same time as the others and into the same files.
    """
    start = launched()
    if start.several:
        raise ConfigError(
            f"{start.variable} = {os.environ[start.variable]}: several processes were started together, but {program} "
            f"is one process. Start one (srun -n 1, say), or unset {start.variable}."
        )


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    return int(text) if text.isascii() and text.isdecimal() else None
