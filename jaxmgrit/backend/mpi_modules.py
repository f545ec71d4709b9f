"""The modules MPI needs, imported when they are first used, with their faults named."""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType

INSTALL = "pip install mpich mpi4py && pip install --no-cache-dir mpi4jax"


@lru_cache
def modules() -> tuple[ModuleType, ModuleType]:
    """`mpi4py.MPI` and `mpi4jax`.

    Raises:
        ImportError: one of them is missing; the message says how to install them.
        RuntimeError: they were built against different MPI libraries.
    """
    try:
        from mpi4py import MPI as mpi
    except (ImportError, RuntimeError) as error:
        # A RuntimeError: mpi4py is there, but finds no MPI library to load.
        raise ImportError(f"MPI: mpi4py cannot be imported ({error}); install MPI support with: {INSTALL}") from error
    try:
        import mpi4jax
    except ImportError as error:
        raise ImportError(f"MPI: mpi4jax cannot be imported ({error}); install MPI support with: {INSTALL}") from error
    if len(libraries := _loaded_libraries()) > 1:
        raise RuntimeError(
            f"MPI: mpi4py and mpi4jax use different MPI libraries ({', '.join(libraries)}), so mpi4jax would talk to "
            "an MPI that was never started. Rebuild it against the one of mpi4py: "
            "pip install --force-reinstall --no-deps --no-cache-dir mpi4jax"
        )
    return mpi, mpi4jax


def _loaded_libraries() -> list[str]:
    """The MPI libraries this process has loaded, where the system tells (Linux)."""
    # Two libraries in one process is what a wheel from a cache leads to, and it fails far from its cause.
    maps = Path("/proc/self/maps")
    if sys.platform != "linux" or not maps.exists():
        return []
    files = {Path(line.split(maxsplit=5)[5]) for line in maps.read_text().splitlines() if len(line.split()) > 5}
    return sorted({str(f.resolve()) for f in files if f.name.startswith(("libmpi.so", "libmpich.so"))})
