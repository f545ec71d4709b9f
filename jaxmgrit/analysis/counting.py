"""A backend whose devices are only counted: programs traced with it carry a mark for every message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax

from jaxmgrit.analysis import marks
from jaxmgrit.backend.base import PyTree, shift_blocks, together

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays


@dataclass(frozen=True)
class Counting:
    """So many devices, of which the program of one is traced; nothing can be run.

    Attributes:
        size: devices the layers are spread over.
        data_size: parts of the batch; states are those of one part.
    """

    size: int
    data_size: int = 1

    def undivided(self) -> Counting:
        """Without the data axis."""
        return Counting(self.size)

    def every(self, stride: int) -> Counting:
        """As many devices less."""
        return replace(self, size=self.size // stride)

    def neighbours(self, count: int) -> Counting:
        """So many devices."""
        return replace(self, size=count)

    @property
    def platform(self) -> str:
        """None of JAX's: all intervals go through a sweep at once."""
        return "counting"

    def index(self) -> Any:
        """Not known."""
        # No number: what depends on the position must stay open in the trace.
        return marks.index() if self.size > 1 else 0

    def _permute(self, block: jax.Array, hop: int) -> jax.Array:
        # All the way round is no message, and none is counted.
        return marks.message("sends", block, block.nbytes) if hop % self.size else block

    def shift(self, x: Arrays, by: int, fill: Arrays | None) -> PyTree:
        """See `Backend.shift`."""
        return shift_blocks(x, by, fill, self.index(), self.size, self._permute)

    def all_gather(self, x: Arrays) -> PyTree:
        """See `Backend.all_gather`."""
        return _together("gathers", x, self.size, axis=1)

    def all_sum(self, x: Arrays) -> PyTree:
        """See `Backend.all_sum`."""
        return _together("sums", x, self.size, axis=0)

    def data_gather(self, x: Arrays) -> PyTree:
        """See `Backend.data_gather`."""
        x = jax.tree.map(lambda y: y[None], x)
        return x if self.data_size == 1 else jax.tree.map(partial(_message, "gathers", leading=self.data_size), x)

    def data_sum(self, x: Arrays) -> PyTree:
        """See `Backend.data_sum`."""
        return _together("sums", x, self.data_size, axis=0)

    @property
    def blocks(self) -> int:
        """As many as devices: arrays are those of one."""
        return self.size

    @property
    def block(self) -> int:
        """The first."""
        return 0

    @property
    def batch_parts(self) -> int:
        """As many as the data axis makes."""
        return self.data_size

    def total(self, x: Arrays) -> PyTree:
        """The value itself."""
        return x

    def data_total(self, x: Arrays) -> PyTree:
        """The value itself."""
        return x

    def split_batch(self, x: Arrays, axis: int = 0) -> PyTree:
        """The arrays themselves: they are a part's."""
        return x

    def join_batch(self, x: Arrays, axis: int = 0) -> PyTree:
        """The arrays themselves."""
        return x

    def lift(self, f: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """The function itself."""
        return f

    def scatter(self, x: Arrays, axis: int = 0) -> PyTree:
        """A block of whole arrays."""
        return jax.tree.map(lambda y: jax.lax.slice_in_dim(y, 0, y.shape[axis] // self.size, axis=axis), x)

    def scatter_states(self, x: Arrays) -> PyTree:
        """A block of the intervals."""
        return self.scatter(x)

    def keep(self, x: Arrays, axis: int = 0) -> PyTree:
        """The arrays themselves."""
        return x

    def keep_states(self, x: Arrays) -> PyTree:
        """The arrays themselves."""
        return x

    def agree(self, decision: jax.Array) -> jax.Array:
        """The decision itself."""
        return decision

    def agreed(self, value: float) -> float:
        """The number itself."""
        return value

    def replicate(self, x: Arrays) -> PyTree:
        """The arrays themselves."""
        return x

    def gather(self, x: Arrays) -> PyTree:
        """See `all_gather`."""
        return self.all_gather(x)


def _together(kind: str, x: Arrays, devices: int, axis: int) -> PyTree:
    """A message for every array that travels by itself."""
    if devices == 1:
        return x
    leading = devices if kind == "gathers" else 1
    return together(partial(_message, kind, leading=leading), x, axis)


def _message(kind: str, x: jax.Array, leading: int = 1) -> jax.Array:
    return marks.message(kind, x, x.nbytes, leading)
