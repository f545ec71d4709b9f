"""Layers spread over MPI ranks, one device each, through mpi4jax (imported when the first `MPI` is made)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmgrit.backend.base import PyTree, check_parts, shift_blocks, together
from jaxmgrit.backend.mpi_modules import modules

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays


@dataclass(frozen=True, eq=False)
class MPI:
    """Intervals of layers spread over the ranks of a communicator; every rank runs the same program.

    Choose it where MPI is what the site has; `Mesh` over `jax.distributed` needs no MPI. Arrays handed to `solve`
    and the like are whole and the same on every rank; C-points and the layers of a `TrainState` are the rank's own
    block. A general `Problem.penalty`, and optimisers that mix entries of different layers (global norms, L-BFGS),
    gather the layers' parameters on every rank; states never.

    Args:
        comm: an mpi4py communicator; None: all ranks.
        data: into how many parts the batch is split. The ranks then make a Cartesian grid of `data` times the ranks
            the layers are spread over, neighbours in rank being neighbours in the layers. The samples are the leading
            axis of x, y and every leaf of the state; loss and running cost must be means over the samples,
            `MGRIT(norm=...)` the square root of a sum over them, and of the loss's aux floating-point leaves are
            averaged over the parts, others those of the rank's own.

    Raises:
        ImportError: mpi4py or mpi4jax is missing; the message says how to install them.
        RuntimeError: mpi4jax was built for another MPI, or a rank sees several local devices.
        ValueError: `data` does not divide the number of ranks.

    Example, run by `mpirun -n 4 python script.py`:
        >>> import jaxmgrit as jm
        >>> backend = jm.MPI()  # doctest: +SKIP
        >>> sol = jm.solve(step, theta, u0, h=1 / 64, backend=backend)  # doctest: +SKIP
    """

    comm: Any = None
    data: int = 1
    _part: tuple[int, int] | None = field(default=None, repr=False, kw_only=True)
    """(stride, count) of a part of the ranks: so many, so far apart; see `every` and `neighbours`."""

    def __post_init__(self) -> None:
        mpi, _ = modules()
        if self.comm is None:
            object.__setattr__(self, "comm", mpi.COMM_WORLD)
        if jax.local_device_count() > 1:
            raise RuntimeError(
                f"MPI: rank {self.comm.Get_rank()} sees {jax.local_device_count()} local devices, but MPI means one "
                "device per rank: show each rank its own (CUDA_VISIBLE_DEVICES, or no "
                "xla_force_host_platform_device_count), or use jm.Mesh for several devices in one process."
            )
        ranks = int(self.comm.Get_size())
        if not isinstance(self.data, int) or self.data < 1 or ranks % self.data:
            raise ValueError(
                f"MPI: data={self.data!r} does not divide the {ranks} rank(s); every part of the batch needs as many "
                "ranks for the layers: start a multiple of data, or choose another data."
            )
        layers, samples = _cartesian(self.comm.py2f(), self.data)
        if self._part is not None:
            layers = _split(layers.py2f(), *self._part)
        # No field: it follows from the fields, and `replace`, which runs through here again, finds the copy's own.
        object.__setattr__(self, "_grid", (layers, samples))

    @property
    def _key(self) -> tuple[Any, ...]:
        # By handle: programs are remembered by their backend, and two objects may stand for one communicator.
        return self.comm.py2f(), self.data, self._part

    def __hash__(self) -> int:
        return hash((type(self), self._key))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MPI) and self._key == other._key

    @property
    def _layers(self) -> Any:
        """The ranks that have the same part of the batch."""
        grid: tuple[Any, Any] = self._grid  # type: ignore[attr-defined]
        return grid[0]

    @property
    def _samples(self) -> Any:
        """The ranks that have the same layers."""
        grid: tuple[Any, Any] = self._grid  # type: ignore[attr-defined]
        return grid[1]

    @property
    def size(self) -> int:
        """Number of ranks the layers are spread over."""
        return int(self._layers.Get_size())

    @property
    def data_size(self) -> int:
        """Number of parts of the batch."""
        return self.data

    def every(self, stride: int) -> MPI:
        """See `Backend.every`."""
        own = 1 if self._part is None else self._part[0]
        return self if stride == 1 else replace(self, _part=(own * stride, self.size // stride))

    def neighbours(self, count: int) -> MPI:
        """See `Backend.neighbours`."""
        own = 1 if self._part is None else self._part[0]
        return self if count == self.size else replace(self, _part=(own, count))

    def undivided(self) -> MPI:
        """The ranks that have the same part of the batch."""
        return self if self.data == 1 else MPI(self._layers)

    @property
    def platform(self) -> str:
        """The platform of JAX's default device."""
        return jax.default_backend()

    @property
    def blocks(self) -> int:
        """As many as ranks share the layers."""
        return self.size

    @property
    def block(self) -> int:
        """The rank's own."""
        return self.index()

    @property
    def batch_parts(self) -> int:
        """As many as the data axis makes."""
        return self.data

    def index(self) -> int:
        """This rank's position among those that share the layers."""
        # Known when the program is traced, unlike a mesh's: every rank traces its own.
        return int(self._layers.Get_rank())

    def _permute(self, block: jax.Array, hop: int) -> jax.Array:
        # Blocks are of one size, so that all ranks skip alike: none is left waiting.
        if hop % self.size == 0 or block.size == 0:
            return block
        rank, size = self.index(), self.size

        def send(x: jax.Array) -> jax.Array:
            # In one call: sends and receives apart could wait for each other all round the ring.
            moved: jax.Array = modules()[1].sendrecv(
                x, x, source=(rank - hop) % size, dest=(rank + hop) % size, comm=self._layers
            )
            return moved

        return _as_numbers(send, block)

    def shift(self, x: Arrays, by: int, fill: Arrays | None) -> PyTree:
        """See `Backend.shift`: one or two send-receives, all round the ring."""
        return shift_blocks(x, by, fill, self.index(), self.size, self._permute)

    def all_gather(self, x: Arrays) -> PyTree:
        """See `Backend.all_gather`."""
        return _gather(x, self._layers)

    def all_sum(self, x: Arrays) -> PyTree:
        """See `Backend.all_sum`; summed in the order of the ranks, so that all get the same bits."""
        return _sum(x, self._layers)

    def data_gather(self, x: Arrays) -> PyTree:
        """See `Backend.data_gather`, in the order of the ranks."""
        if self.data == 1:
            return jax.tree.map(lambda y: y[None], x)
        return jax.tree.map(lambda y: modules()[1].allgather(y, comm=self._samples), x)

    def data_sum(self, x: Arrays) -> PyTree:
        """See `Backend.data_sum`; summed in the order of the ranks."""
        return x if self.data == 1 else _sum(x, self._samples)

    def total(self, x: Arrays) -> PyTree:
        """`all_sum`: each rank has computed from its own block."""
        return self.all_sum(x)

    def data_total(self, x: Arrays) -> PyTree:
        """`data_sum`: each rank has computed from its own part of the batch."""
        return self.data_sum(x)

    def split_batch(self, x: Arrays, axis: int = 0) -> PyTree:
        """This rank's part of whole arrays."""
        check_parts(x, axis, self.data)
        return x if self.data == 1 else _block(x, axis, int(self._samples.Get_rank()), self.data)

    def join_batch(self, x: Arrays, axis: int = 0) -> PyTree:
        """Whole arrays, on every rank."""
        if self.data == 1:
            return x
        return jax.tree.map(lambda y: jnp.moveaxis(_gather(jnp.moveaxis(y, axis, 0), self._samples), 0, axis), x)

    def lift(self, f: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """`jax.jit` of the function: every rank runs it."""
        return jax.jit(f)

    def scatter(self, x: Arrays, axis: int = 0) -> PyTree:
        """This rank's block of whole arrays."""
        return _block(x, axis, self.index(), self.size)

    def scatter_states(self, x: Arrays) -> PyTree:
        """This rank's block of the intervals."""
        return self.scatter(x)

    def keep(self, x: Arrays, axis: int = 0) -> PyTree:
        """The arrays themselves: a rank's block stays with it."""
        return x

    def keep_states(self, x: Arrays) -> PyTree:
        """The arrays themselves."""
        return x

    def agree(self, decision: jax.Array) -> jax.Array:
        """What all ranks say: those that took different decisions would wait for each other for ever."""
        return self.data_sum(self.all_sum((~decision).astype("int32"))) == 0

    def agreed(self, value: float) -> float:
        """The first rank's number."""
        agreed: float = self.comm.bcast(value)
        return agreed

    def replicate(self, x: Arrays) -> PyTree:
        """The arrays themselves: every rank has them."""
        return x

    def gather(self, x: Arrays) -> PyTree:
        """Whole arrays, on every rank."""
        return self.all_gather(x)


def _as_numbers(send: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """What an operation makes of an array; of random keys, which MPI knows nothing of, by the numbers they are."""
    if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return send(x)
    return jax.random.wrap_key_data(send(jax.random.key_data(x)), impl=jax.random.key_impl(x))


def _gather(x: Arrays, comm: Any) -> PyTree:
    def gather(y: jax.Array) -> jax.Array:
        whole: jax.Array = modules()[1].allgather(y, comm=comm)
        return whole.reshape(-1, *y.shape[1:])

    return together(lambda y: _as_numbers(gather, y), x, axis=1)


def _sum(x: Arrays, comm: Any) -> PyTree:
    # Not `allreduce`, whose order of summation is MPI's own: ranks must decide alike, from the same bits.
    gather = modules()[1].allgather
    return together(lambda y: jnp.sum(gather(y, comm=comm), axis=0), x, axis=0)


def _block(x: Arrays, axis: int, index: int, count: int) -> PyTree:
    def own(y: Arrays) -> Any:
        share = y.shape[axis] // count
        return jax.lax.slice_in_dim(jnp.asarray(y), index * share, (index + 1) * share, axis=axis)

    return jax.tree.map(own, x)


@lru_cache
def _cartesian(handle: int, data: int) -> tuple[Any, Any]:
    """The communicators of a rank's row and column; made once, since making them is collective."""
    mpi, _ = modules()
    comm = mpi.Comm.f2py(handle)
    # Making a communicator is collective; without a data axis none is needed.
    if data == 1:
        return comm, mpi.COMM_SELF
    grid = comm.Create_cart([data, comm.Get_size() // data])
    return grid.Sub([False, True]), grid.Sub([True, False])


@lru_cache
def _split(handle: int, stride: int, count: int) -> Any:
    """The communicator of a part of the ranks; made once, since making it is collective: all ranks trace alike."""
    mpi, _ = modules()
    comm = mpi.Comm.f2py(handle)
    rank = comm.Get_rank()
    # The first argument names a part: ranks `stride` apart among stride * count in a row.
    return comm.Split(rank // (stride * count) * stride + rank % stride, rank)
