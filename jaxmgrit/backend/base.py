"""The narrow door to distribution: the few operations the method is written against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

PyTree = Any

SHARDED: Any = "sharded"
REPLICATED: Any = "replicated"


class Backend(Protocol):
    """How data over the layers is spread. "Sharded" arrays have a leading axis that is cut into `size` equal blocks.

    Inside a function handed to `lift`, a sharded array is this device's block and a replicated one is whole. Every
    operation acts on all leaves of a pytree.
    """

    @property
    def size(self) -> int:
        """Number of devices the layers are spread over."""

    @property
    def platform(self) -> str:
        """JAX's name of the devices' platform: "cpu", "gpu", ..."""

    def index(self) -> Any:
        """This device's position, 0 .. size - 1."""

    def shift(self, x: PyTree, by: int, fill: PyTree | None) -> PyTree:
        """Move the entries of a sharded array by `by` places along its whole leading axis.

        With `fill` (one entry, no leading axis; then `by` is 1 or -1) the vacated entry becomes `fill`; without, the
        entries go round cyclically.
        """

    def all_gather(self, x: PyTree) -> PyTree:
        """The whole of a sharded array, on every device."""

    def all_sum(self, x: PyTree) -> PyTree:
        """Sum over the devices of one array each, on every device."""

    def lift(self, f: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """Run f on every device; specs are (prefix pytrees of) SHARDED and REPLICATED."""

    @property
    def cut(self) -> bool:
        """Whether sharded arrays outside `lift` are this process's block only, rather than whole."""

    def total(self, x: PyTree) -> PyTree:
        """Outside `lift`, the sum over all layers of what was computed from a sharded array's entries."""

    def scatter(self, x: PyTree, axis: int = 0) -> PyTree:
        """Turn whole arrays, the same on every process, into arrays sharded along an axis."""

    def replicate(self, x: PyTree) -> PyTree:
        """Give whole arrays, the same on every process, to all devices."""

    def gather(self, x: PyTree) -> PyTree:
        """Undo `scatter`: whole arrays."""


def shift_blocks(
    x: PyTree, by: int, fill: PyTree | None, index: Any, size: int, permute: Callable[[Any, int], Any]
) -> PyTree:
    """`Backend.shift` on blocks, given `permute(block, hop)`, which moves a block cyclically `hop` devices up.

    Without a fill, an entry moves `by = hop * n + rest` places: the first n - rest entries of a block land `hop`
    devices
    up and the others one further.
    """
    if fill is None:

        def rotate(block: Any) -> Any:
            n = block.shape[0]
            hop, rest = divmod(by, n)
            kept = permute(block[: n - rest], hop)
            return kept if rest == 0 else jnp.concatenate([permute(block[n - rest :], hop + 1), kept])

        return jax.tree.map(rotate, x)

    if by not in (1, -1):
        raise ValueError(f"shift with a fill value moves by 1 or -1, got by={by}")
    at_end = index == (0 if by == 1 else size - 1)

    def move(block: Any, vacated: Any) -> Any:
        edge = jnp.where(at_end, vacated[None], permute(block[-1:] if by == 1 else block[:1], by))
        return jnp.concatenate([edge, block[:-1]] if by == 1 else [block[1:], edge])

    return jax.tree.map(move, x, fill)


def broadcast(backend: Backend, x: PyTree, source: int) -> PyTree:
    """The value that device `source` holds, on every device."""
    if backend.size == 1:
        return x
    here = backend.index() == source
    return backend.all_sum(jax.tree.map(lambda y: jnp.where(here, y, jnp.zeros_like(y)), x))
