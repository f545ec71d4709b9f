"""Approximations of the inverse Hessian: the identity, L-BFGS and dense BFGS, over parameters spread over devices.

Each is a record of functions: `init` (a memory without pairs), `remember` (a pair of differences), `direction` and
`forget`. optax's `scale_by_lbfgs` takes inner products from what one process holds, scales the first gradient, and
keeps pairs whatever their curvature; here they are over all devices, d = g at first, and a pair (s, y) is kept only if
s'y > 1e-8 |s| |y| (ten units in the last place where that is more), so that H stays positive definite.

Source: Nocedal and Wright, Numerical Optimization, 2006, algorithms 7.4 and 6.1; Guenther et al. 2020, section 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxmgrit._checks import integer
from jaxmgrit._pytree import real_dtype, where

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays
    from jaxmgrit.backend.base import Backend
    from jaxmgrit.training.state import Params

PyTree = Any

MOST_DENSE = 16_384  # parameters; their dense inverse Hessian takes 2 GiB in double precision


class Space(NamedTuple):
    """Where vectors of parameters live: the backend, and N."""

    backend: Backend
    layers: int


def dot(a: Params, b: Params, space: Space) -> jax.Array:
    """Inner product over all parameters, those of all devices; padding must be zero."""
    dtype = real_dtype(a)

    def products(part: Arrays, other: PyTree) -> jax.Array:
        sums = jax.tree.map(lambda x, y: jnp.sum(jnp.real(x * jnp.conj(y))).astype(dtype), part, other)
        return sum(jax.tree.leaves(sums), jnp.zeros((), dtype))

    # What is not a layer's is whole everywhere: outside the sum over devices, or it would count once for each.
    ends = products(a._replace(layers=None), b._replace(layers=None))
    return space.backend.total(products(a.layers, b.layers)) + ends


class Curvature(NamedTuple):
    """Inner products of a pair of differences, and whether the pair may be kept."""

    sy: jax.Array
    yy: jax.Array
    kept: jax.Array


def curvature(s: Params, y: Params, space: Space) -> Curvature:
    """The curvature along a pair, and the safeguard."""
    sy, ss, yy = dot(s, y, space), dot(s, s, space), dot(y, y, space)
    least = max(1e-8, 10 * float(jnp.finfo(sy.dtype).eps))
    # Two roots, since |s|^2 |y|^2 underflows long before |s| |y| does.
    return Curvature(sy, yy, sy > least * jnp.sqrt(ss) * jnp.sqrt(yy))


def _axpy(a: Arrays, x: Arrays, y: Arrays) -> PyTree:
    return jax.tree.map(lambda u, v: v + a.astype(v.dtype) * u, x, y)


class Hessian(Protocol):
    """What the approximations have in common; a memory is a pytree."""

    def init(self, like: Params, space: Space) -> Any:
        """A memory without pairs, for trainable parameters like these, laid out and spread over the devices."""

    def remember(self, memory: Any, s: Params, y: Params, space: Space) -> Any:
        """The memory with one more pair of differences, if its curvature allows."""

    def direction(self, memory: Any, gradient: Params, space: Space) -> Params:
        """H g."""

    def forget(self, memory: Any, when: jax.Array) -> Any:
        """The memory without pairs where `when` is true."""


@dataclass(frozen=True)
class SteepestDescent:
    """H is the identity.

    Example:
        >>> import jaxmgrit as jm; hessian = jm.SteepestDescent()  # jm.PublishedLoop(problem, hessian)
    """

    def init(self, like: Params, space: Space) -> PyTree:
        """Nothing to remember."""
        del like, space
        return ()

    def remember(self, memory: PyTree, s: Params, y: Params, space: Space) -> PyTree:
        """Nothing to remember."""
        del s, y, space
        return memory

    def direction(self, memory: PyTree, gradient: Params, space: Space) -> Params:
        """The gradient."""
        del memory, space
        return gradient

    def forget(self, memory: PyTree, when: jax.Array) -> PyTree:
        """Nothing to forget."""
        del when
        return memory


class Pairs(NamedTuple):
    """Pairs of differences in a ring; the newest is number `stored - 1`, modulo the ring's length.

    Attributes:
        s: differences of parameters, leaves (..., memory).
        y: of gradients.
        rho: 1 / s'y, (memory,).
        scale: s'y / y'y of the newest pair.
        stored: pairs kept since the start or the last `forget`.
    """

    s: Params
    y: Params
    rho: jax.Array
    scale: jax.Array
    stored: jax.Array


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS by the two-loop recursion, with H0 = s'y / y'y of the newest pair.

    Args:
        memory: how many pairs are kept.

    Raises:
        TypeError, ValueError: `memory` is not an integer >= 1.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> loss = lambda p, u, y: (jnp.mean((u - y) ** 2), None)
        >>> problem = jm.Problem(lambda p, x: x @ p, step, loss, h=0.1)
        >>> params = jm.Params(jnp.eye(2), 0.1 * jnp.ones((16, 2, 2)), ())
        >>> batch = (jnp.ones((3, 2)), jnp.zeros((3, 2)))
        >>> loop = jm.PublishedLoop(problem, hessian=jm.LBFGS(memory=5), solver=jm.MGRIT(4), adjoint=jm.MGRIT(4))
        >>> state, info = jax.jit(loop.step)(loop.init(params, batch), batch)
        >>> float(info.step_size) > 0
        True
    """

    memory: int = 20

    def __post_init__(self) -> None:
        integer("LBFGS", "memory", self.memory, 1)

    def init(self, like: Params, space: Space) -> Pairs:
        """A ring without pairs, for parameters like these."""

        def ring() -> Params:
            # The ring's axis is the last, so that the axis over the layers is where the parameters have it.
            return jax.tree.map(lambda x: jnp.zeros((*x.shape, self.memory), x.dtype), like)

        dtype = _dtype(like)
        return Pairs(ring(), ring(), jnp.zeros((self.memory,), dtype), jnp.ones((), dtype), jnp.zeros((), jnp.int32))

    def remember(self, memory: Pairs, s: Params, y: Params, space: Space) -> Pairs:
        """Keep a pair in place of the oldest, if its curvature allows."""
        pair = curvature(s, y, space)
        index = memory.stored % self.memory

        def put(ring: Any, new: Any) -> Any:
            # No branch: a refused pair (whose 1/s'y may be infinite) writes back what is there.
            return ring.at[..., index].set(jnp.where(pair.kept, new, ring[..., index]))

        return Pairs(
            jax.tree.map(put, memory.s, s),
            jax.tree.map(put, memory.y, y),
            put(memory.rho, 1 / pair.sy),
            jnp.where(pair.kept, pair.sy / pair.yy, memory.scale),
            memory.stored + pair.kept.astype(jnp.int32),
        )

    def direction(self, memory: Pairs, gradient: Params, space: Space) -> Params:
        """H g by the two-loop recursion; g where no pair is kept."""
        used = jnp.minimum(memory.stored, self.memory)

        def pair(i: Any) -> tuple[Params, Params]:
            return jax.tree.map(lambda x: x[..., i], (memory.s, memory.y))

        def newest_first(k: Arrays, carry: tuple[Params, jax.Array]) -> tuple[Params, jax.Array]:
            d, alphas = carry
            # `%` has the divisor's sign, so the index stays in the ring; beyond `used` alpha is 0 anyway.
            i = (memory.stored - 1 - k) % self.memory
            s, y = pair(i)
            alpha = jnp.where(k < used, memory.rho[i] * dot(s, d, space), 0.0)
            return _axpy(-alpha, y, d), alphas.at[i].set(alpha)

        def oldest_first(k: Arrays, d: Params) -> Params:
            i = (memory.stored - used + k) % self.memory
            s, y = pair(i)
            change = jnp.where(k < used, alphas[i] - memory.rho[i] * dot(y, d, space), 0.0)
            return _axpy(change, s, d)

        # All of the ring each time, so that no device's number of inner products depends on what it has computed.
        d, alphas = jax.lax.fori_loop(0, self.memory, newest_first, (gradient, jnp.zeros_like(memory.rho)))
        scale = jnp.where(used > 0, memory.scale, 1.0)
        d = jax.tree.map(lambda x: scale.astype(x.dtype) * x, d)
        return jax.lax.fori_loop(0, self.memory, oldest_first, d)

    def forget(self, memory: Pairs, when: jax.Array) -> Pairs:
        """Drop all pairs where `when` is true."""
        # The numbers stay in the ring: beyond `stored` they count for nothing.
        return memory._replace(stored=jnp.where(when, 0, memory.stored))


class Dense(NamedTuple):
    """The approximation of the inverse Hessian itself.

    Attributes:
        inverse: (n, n) for n parameters; every device has all of it.
        updated: whether a pair has entered it.
    """

    inverse: jax.Array
    updated: jax.Array


@dataclass(frozen=True)
class BFGS:
    """Dense BFGS, for small networks; the identity is scaled by s'y / y'y before the first pair enters.

    `init` raises a ValueError where the parameters are too many for a dense matrix.

    Example:
        >>> import jaxmgrit as jm
        >>> hessian = jm.BFGS()  # jm.PublishedLoop(problem, hessian)
    """

    def init(self, like: Params, space: Space) -> Dense:
        """The identity, for parameters like these."""
        n = _count(like, space)
        if n > MOST_DENSE:
            raise ValueError(
                f"BFGS: {n} parameters would need a dense matrix of {n} x {n} numbers; at most {MOST_DENSE} are "
                "allowed. Use jm.LBFGS(memory=20)."
            )
        return Dense(jnp.eye(n, dtype=_dtype(like)), jnp.zeros((), bool))

    def remember(self, memory: Dense, s: Params, y: Params, space: Space) -> Dense:
        """Update by a pair, if its curvature allows."""
        pair = curvature(s, y, space)
        a, b = (ravel_pytree(_whole(x, space))[0] for x in (s, y))
        inverse = memory.inverse * jnp.where(memory.updated, 1.0, pair.sy / pair.yy)
        rho, hb = 1 / pair.sy, inverse @ b
        mixed = hb[:, None] * a[None, :]
        # (I - rho s y') H (I - rho y s') + rho s s' - H, multiplied out: no product of two matrices is left.
        change = rho * ((1 + rho * (b @ hb)) * (a[:, None] * a[None, :]) - mixed - mixed.T)
        # `memory.inverse` rather than `inverse`: a refused pair leaves no scaling behind either.
        return Dense(jnp.where(pair.kept, inverse + change, memory.inverse), memory.updated | pair.kept)

    def direction(self, memory: Dense, gradient: Params, space: Space) -> Params:
        """H g."""
        vector, unravel = ravel_pytree(_whole(gradient, space))
        d: Params = unravel(memory.inverse @ vector)

        def padded(x: Arrays, g: Arrays) -> jax.Array:
            return jnp.pad(x, [(0, g.shape[0] * space.backend.blocks - space.layers)] + [(0, 0)] * (x.ndim - 1))

        # `unravel` gives N layers; padding comes back as zeros, as any gradient has there.
        return d._replace(layers=space.backend.scatter(jax.tree.map(padded, d.layers, gradient.layers)))

    def forget(self, memory: Dense, when: jax.Array) -> Dense:
        """Back to the identity where `when` is true."""
        inverse, updated = memory
        return Dense(where(when, jnp.eye(len(inverse), dtype=inverse.dtype), inverse), updated & ~when)


def _dtype(like: Params) -> Any:
    return real_dtype(like) if jax.tree.leaves(like) else float  # optax asks for the structure without leaves


def _count(like: Params, space: Space) -> int:
    """Number of parameters, without padding."""
    if not jax.tree.leaves(like):
        return 0
    per_layer = sum(x.size // x.shape[0] for x in jax.tree.leaves(like.layers))
    return space.layers * per_layer + sum(x.size for x in jax.tree.leaves(like._replace(layers=None)))


def _whole(params: Params, space: Space) -> Params:
    """All layers, without padding."""
    return params._replace(layers=jax.tree.map(lambda x: x[: space.layers], space.backend.gather(params.layers)))
