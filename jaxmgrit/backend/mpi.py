"""Layers spread over MPI ranks, one device each, through mpi4jax (imported when the first `MPI` is made)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from jaxmgrit.backend.base import PyTree, shift_blocks

INSTALL = "pip install mpich mpi4py && pip install --no-cache-dir mpi4jax"


@dataclass(frozen=True, eq=False)
class MPI:
    """Intervals of layers spread over the ranks of a communicator; every rank runs the same program.

    Choose it where MPI is what the site has; `Mesh` over `jax.distributed` needs no MPI. Arrays handed to `solve`
    and the
    like are whole and the same on every rank; C-points and the layers of a `TrainState` are the rank's own block. A
    general `Problem.penalty`, and optimisers that mix entries of different layers (global norms, L-BFGS), gather the
    layers' parameters on every rank; states never.

    Args:
        comm: an mpi4py communicator; None: all ranks.

    Raises:
        ImportError: mpi4py or mpi4jax is missing; the message says how to install them.
        RuntimeError: mpi4jax was built for another MPI, or a rank sees several local devices.
    """

    comm: Any = None

    def __post_init__(self) -> None:
        mpi, _ = _modules()
        if self.comm is None:
            object.__setattr__(self, "comm", mpi.COMM_WORLD)
        if jax.local_device_count() > 1:
            raise RuntimeError(
                f"MPI: rank {self.comm.Get_rank()} sees {jax.local_device_count()} local devices, but MPI "
                "means one device "
                "per rank: show each rank its own (CUDA_VISIBLE_DEVICES, or no "
                "xla_force_host_platform_device_count), or "
                "use jm.Mesh for several devices in one process."
            )

    def __hash__(self) -> int:
        return hash((type(self), self.comm.py2f()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MPI) and self.comm.py2f() == other.comm.py2f()

    @property
    def size(self) -> int:
        """Number of ranks."""
        return int(self.comm.Get_size())

    @property
    def platform(self) -> str:
        """The platform of JAX's default device."""
        return jax.default_backend()

    @property
    def cut(self) -> bool:
        """Yes: a rank has its own block."""
        return True

    def index(self) -> int:
        """This rank."""
        return int(self.comm.Get_rank())

    def _permute(self, block: jax.Array, hop: int) -> jax.Array:
        if hop % self.size == 0 or block.size == 0:
            return block
        rank, size = self.index(), self.size
        moved: jax.Array = _modules()[1].sendrecv(
            block, block, source=(rank - hop) % size, dest=(rank + hop) % size, comm=self.comm
        )
        return moved

    def shift(self, x: PyTree, by: int, fill: PyTree | None) -> PyTree:
        """See `Backend.shift`: one or two send-receives, all round the ring."""
        return shift_blocks(x, by, fill, self.index(), self.size, self._permute)

    def all_gather(self, x: PyTree) -> PyTree:
        """See `Backend.all_gather`."""
        gather = _modules()[1].allgather
        return jax.tree.map(lambda y: gather(y, comm=self.comm).reshape(-1, *y.shape[1:]), x)

    def all_sum(self, x: PyTree) -> PyTree:
        """See `Backend.all_sum`; summed in the order of the ranks, so that all get the same bits."""
        gather = _modules()[1].allgather
        return jax.tree.map(lambda y: jnp.sum(gather(y, comm=self.comm), axis=0), x)

    def total(self, x: PyTree) -> PyTree:
        """`all_sum`: each rank has computed from its own block."""
        return self.all_sum(x)

    def lift(self, f: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """`jax.jit` of the function: every rank runs it."""
        return jax.jit(f)

    def scatter(self, x: PyTree, axis: int = 0) -> PyTree:
        """This rank's block of whole arrays."""

        def own(y: Any) -> Any:
            share = y.shape[axis] // self.size
            return jax.lax.slice_in_dim(y, self.index() * share, (self.index() + 1) * share, axis=axis)

        return jax.tree.map(own, x)

    def replicate(self, x: PyTree) -> PyTree:
        """The arrays themselves: every rank has them."""
        return x

    def gather(self, x: PyTree) -> PyTree:
        """Whole arrays, on every rank."""
        return self.all_gather(x)


def _modules() -> tuple[ModuleType, ModuleType]:
    try:
        from mpi4py import MPI as mpi
    except ImportError as error:
        raise ImportError(f"MPI: mpi4py cannot be imported ({error}); install MPI support with: {INSTALL}") from error
    try:
        import mpi4jax
    except ImportError as error:
        raise ImportError(f"MPI: mpi4jax cannot be imported ({error}); install MPI support with: {INSTALL}") from error
    return mpi, mpi4jax
