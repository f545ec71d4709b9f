"""The narrow door to distribution: the two contracts that everything else is written against."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, Self

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Index, Layers

PyTree = Any

# What arrays handed to a lifted function are. The last three differ from the first two only where a data axis splits
# the batch: states have the samples as leading axis, behind that of the layers (cut or whole) if there is one.
SHARDED: Any = "sharded"
REPLICATED: Any = "replicated"
SHARDED_STATES: Any = "sharded states"
WHOLE_STATES: Any = "whole states"
STATE: Any = "state"

# Arrays of fewer bytes travel together: a message costs more than what is in it.
_SMALL = 1 << 16


class Collectives(Protocol):
    """The first contract: what a function handed to `lift` may ask of the devices it runs on.

    There, a "sharded" array, whose leading axis is cut into `size` equal blocks, is this device's block, and a
    replicated one is whole. Every operation acts on all leaves of a pytree, and every device calls it. A data axis,
    where there is one, splits the batch into `data_size` equal parts; the operations over the layers then are those
    among the devices that have the same part.
    """

    @property
    def size(self) -> int:
        """Number of devices the layers are spread over."""

    @property
    def data_size(self) -> int:
        """Number of parts the batch is split into, 1 without a data axis."""

    def index(self) -> Any:
        """This device's position, 0 .. size - 1."""

    def every(self, stride: int) -> Self:
        """The devices that are a multiple of `stride` places from this one; `stride` divides `size`."""

    def neighbours(self, count: int) -> Self:
        """The `count` devices this one is among, counted off from the first device; `count` divides `size`."""

    def shift(self, x: Arrays, by: int, fill: Arrays | None) -> PyTree:
        """Move the entries of a sharded array by `by` places along its whole leading axis.

        With `fill` (one entry, no leading axis; then `by` is 1 or -1) the vacated entry becomes `fill`; without, the
        entries go round cyclically.
        """

    def all_gather(self, x: Arrays) -> PyTree:
        """The whole of a sharded array, on every device."""

    def all_sum(self, x: Arrays) -> PyTree:
        """Sum over the devices of one array each, on every device."""

    def data_gather(self, x: Arrays) -> PyTree:
        """One array of each part of the batch, stacked along a new leading axis, on every device."""

    def data_sum(self, x: Arrays) -> PyTree:
        """Sum over the parts of the batch of one array each, on every device."""


class Placement(Protocol):
    """The second contract: where arrays are outside `lift`, and how they get there.

    What a process has of a sharded array there is one of `blocks` equal blocks: the array itself, if that is one; and
    of states it has one of `batch_parts` parts of the batch.
    """

    @property
    def platform(self) -> str:
        """JAX's name of the devices' platform: "cpu", "gpu", ..."""

    @property
    def blocks(self) -> int:
        """In how many blocks sharded arrays are apart."""

    @property
    def block(self) -> int:
        """Which of them this process has."""

    @property
    def batch_parts(self) -> int:
        """In how many parts states are apart."""

    def scatter(self, x: Arrays, axis: int = 0) -> PyTree:
        """Turn whole arrays, the same on every process, into arrays sharded along an axis."""

    def scatter_states(self, x: Arrays) -> PyTree:
        """Turn states of this backend, leading axis all intervals, into sharded states."""

    def keep(self, x: Arrays, axis: int = 0) -> PyTree:
        """Let sharded arrays that were computed stay where `scatter` puts them."""

    def keep_states(self, x: Arrays) -> PyTree:
        """Let sharded states that were computed stay where `scatter_states` puts them."""

    def replicate(self, x: Arrays) -> PyTree:
        """Give whole arrays, the same on every process, to all devices."""

    def gather(self, x: Arrays) -> PyTree:
        """Undo `scatter`: whole arrays, on every device."""

    def split_batch(self, x: Arrays, axis: int = 0) -> PyTree:
        """Turn whole batches or states, the samples along an axis and the same on every process, into this backend's.

        Raises:
            ValueError: the parts would not be equal.
        """

    def join_batch(self, x: Arrays, axis: int = 0) -> PyTree:
        """Undo `split_batch`."""

    def undivided(self) -> Self:
        """The same devices for the layers, with the batch whole on all of them."""

    def total(self, x: Arrays) -> PyTree:
        """The sum over all layers of what was computed from what a process has of a sharded array."""

    def data_total(self, x: Arrays) -> PyTree:
        """The sum over the whole batch of what was computed from what a process has of states."""

    def agree(self, decision: jax.Array) -> jax.Array:
        """A truth value that processes may have computed differently: the same for all, true only where all say so."""

    def agreed(self, value: float) -> float:
        """A number on the host that processes may have measured differently: the first process's, on all of them."""


class Backend(Collectives, Placement, Protocol):
    """How data over the layers is spread: both contracts, and the door between them."""

    def lift(self, f: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """Run f on every device; specs are (prefix pytrees of) SHARDED, REPLICATED and the three kinds of states."""


def check_parts(x: Arrays, axis: int, parts: int) -> None:
    """Raise a ValueError unless an axis of every leaf can be cut into so many equal parts."""
    for leaf in jax.tree.leaves(x) if parts > 1 else ():
        if leaf.ndim <= axis or leaf.shape[axis] % parts:
            have = f"{leaf.shape[axis]} samples" if leaf.ndim > axis else "none in an array with too few axes"
            raise ValueError(
                f"the data axis splits the batch into {parts} equal parts, but there are {have} (shape {leaf.shape}); "
                "with a data axis the leading axis of x, y and every leaf of the state is the samples', and the number "
                f"of samples must be a multiple of {parts}: leave some out, or use another size of the data axis."
            )


def together(operation: Callable[[Any], Any], x: Arrays, axis: int) -> PyTree:
    """An operation on every leaf, small leaves of one dtype in one array.

    The operation leaves the axes from `axis` on alone; of the leaves in one array those before are the same.
    """
    leaves, tree = jax.tree.flatten(x)
    groups: dict[Any, list[int]] = {}
    # Leaves of one dtype and the same leading axes fit into one message; large ones gain nothing by it.
    for number, leaf in enumerate(leaves):
        alike = (leaf.dtype, leaf.shape[:axis]) if leaf.nbytes < _SMALL else number
        groups.setdefault(alike, []).append(number)
    for members in groups.values():
        shapes = [leaves[i].shape[axis:] for i in members]
        flat = [leaves[i].reshape(*leaves[i].shape[:axis], -1) for i in members]
        ends = list(itertools.accumulate(part.shape[-1] for part in flat))
        done = operation(jnp.concatenate(flat, axis=-1) if len(flat) > 1 else leaves[members[0]])
        parts = jnp.split(done, ends[:-1], axis=-1) if len(flat) > 1 else [done]
        for i, part, shape in zip(members, parts, shapes, strict=True):
            leaves[i] = part.reshape(*part.shape[:axis], *shape)
    return jax.tree.unflatten(tree, leaves)


def shift_blocks(
    x: Arrays, by: int, fill: Arrays | None, index: Index, size: int, permute: Callable[[Any, int], Any]
) -> PyTree:
    """`Backend.shift` on blocks, given `permute(block, hop)`, which moves a block cyclically `hop` devices up.

    Without a fill, an entry moves `by = hop * n + rest` places: the first n - rest entries of a block land `hop`
    devices up and the others one further.

    The fill too is what a device is sent, by the one at the other end of the ring, which has no other use for its
    message. If the device took its own, its next sweep would not depend on the message, and XLA could (and did) put
    the sweep first, for whose end the neighbour would then wait.
    """
    if fill is None:

        def rotate(block: Layers) -> Any:
            n = block.shape[0]
            hop, rest = divmod(by, n)
            kept = permute(block[: n - rest], hop)
            return kept if rest == 0 else jnp.concatenate([permute(block[n - rest :], hop + 1), kept])

        return jax.tree.map(rotate, x)

    if by not in (1, -1):
        raise ValueError(f"shift with a fill value moves by 1 or -1, got by={by}")
    wraps = index == (size - 1 if by == 1 else 0)

    def move(block: Layers, vacated: Any) -> Any:
        edge = permute(jnp.where(wraps, vacated[None], block[-1:] if by == 1 else block[:1]), by)
        return jnp.concatenate([edge, block[:-1]] if by == 1 else [block[1:], edge])

    return jax.tree.map(move, x, fill)


def broadcast(backend: Collectives, x: Arrays, source: int) -> PyTree:
    """The value that device `source` holds, on every device."""
    if backend.size == 1:
        return x
    # All terms but one are zero; selected, not multiplied, since other devices may hold NaN.
    is_source = backend.index() == source
    return backend.all_sum(jax.tree.map(lambda y: jnp.where(is_source, y, jnp.zeros_like(y)), x))
