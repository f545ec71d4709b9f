"""Everything on one device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax

from jaxmgrit.backend.base import PyTree, shift_blocks

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays


@dataclass(frozen=True)
class Local:
    """All layers on one device: nothing is sharded, nothing communicates.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> theta, u0 = 0.1 * jnp.ones((64, 4, 4)), jnp.ones((2, 4))
        >>> jm.solve(step, theta, u0, h=1 / 64, backend=jm.Local()).u_final.shape
        (2, 4)
    """

    @property
    def size(self) -> int:
        """One device."""
        return 1

    @property
    def data_size(self) -> int:
        """The batch is whole."""
        return 1

    def undivided(self) -> Local:
        """Itself."""
        return self

    @property
    def platform(self) -> str:
        """The platform of JAX's default device."""
        return jax.default_backend()

    def every(self, stride: int) -> Local:
        """Itself."""
        return self

    def neighbours(self, count: int) -> Local:
        """Itself."""
        return self

    def index(self) -> int:
        """Always 0."""
        return 0

    def shift(self, x: Arrays, by: int, fill: Arrays | None) -> PyTree:
        """See `Backend.shift`."""
        return shift_blocks(x, by, fill, 0, 1, lambda block, hop: block)

    def all_gather(self, x: Arrays) -> PyTree:
        """The array itself."""
        return x

    def all_sum(self, x: Arrays) -> PyTree:
        """The array itself."""
        return x

    def data_gather(self, x: Arrays) -> PyTree:
        """The array itself, as the only one."""
        return jax.tree.map(lambda y: y[None], x)

    def data_sum(self, x: Arrays) -> PyTree:
        """The array itself."""
        return x

    @property
    def blocks(self) -> int:
        """One: outside `lift` arrays are whole."""
        return 1

    @property
    def block(self) -> int:
        """The only one."""
        return 0

    @property
    def batch_parts(self) -> int:
        """One: outside `lift` the batch is whole."""
        return 1

    def total(self, x: Arrays) -> PyTree:
        """The value itself: it was computed from whole arrays."""
        return x

    def data_total(self, x: Arrays) -> PyTree:
        """The value itself: it was computed from whole states."""
        return x

    def split_batch(self, x: Arrays, axis: int = 0) -> PyTree:
        """The arrays themselves."""
        return x

    def join_batch(self, x: Arrays, axis: int = 0) -> PyTree:
        """The arrays themselves."""
        return x

    def lift(self, f: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """`jax.jit` of the function."""
        return jax.jit(f)

    def scatter(self, x: Arrays, axis: int = 0) -> PyTree:
        """The arrays themselves."""
        return x

    def scatter_states(self, x: Arrays) -> PyTree:
        """The arrays themselves."""
        return x

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
        """The arrays themselves."""
        return x


LOCAL = Local()
