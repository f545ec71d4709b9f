"""The coarse problem: delta_{j+1} = A_j delta_j + r_j along all intervals, whichever device holds them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmgrit.system.grid import Grid, entry


def apply(jacobian: jax.Array, delta: jax.Array) -> jax.Array:
    """A delta of every sample: (..., d, samples, d) and (..., samples, d), the first axis being the input's."""
    return jnp.einsum("...isk,...si->...sk", jacobian, delta)


def compose(first: tuple[jax.Array, jax.Array], then: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Two affine maps (A, r), one after the other, as one."""
    (a, r), (b, s) = first, then
    # B (A delta + r) + s; as the input's axis is the first, the product B A is written A, B.
    return jnp.einsum("...isl,...lsk->...isk", a, b), apply(b, r) + s


def recur(grid: Grid, jacobians: jax.Array, residuals: jax.Array) -> jax.Array:
    """The correction at the end of every interval of this device, from 0 where the run begins.

    On a CPU a loop of mat-vecs; on an accelerator `associative_scan`. Over devices each composes its own intervals to
    one map, all maps are gathered, and each runs on from what enters its share.

    Args:
        grid: the level; tells direction and backend.
        jacobians: A of each interval, (share, d, samples, d), the input's component first.
        residuals: r, (share, samples, d).
    """
    own = (jacobians, residuals)
    zero = jnp.zeros_like(residuals[0])
    # A prefix of matrix products costs at least d times a loop of mat-vecs: only many parallel units pay that back.
    if grid.backend.platform == "cpu":
        if grid.backend.size == 1:
            return _loop(own, zero, grid.backward)
        return _loop(own, _entering(grid, _product(own, zero, grid.backward), zero), grid.backward)
    prefixes = jax.lax.associative_scan(compose, own, reverse=grid.backward)
    if grid.backend.size == 1:
        return prefixes[1]
    whole = entry(prefixes, 0 if grid.backward else grid.level.share - 1)
    return jax.vmap(apply, (0, None))(prefixes[0], _entering(grid, whole, zero)) + prefixes[1]


def _loop(maps: tuple[jax.Array, jax.Array], start: jax.Array, backward: bool) -> jax.Array:
    """What each map arrives at, from the start on."""

    def one(delta: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        delta = apply(pair[0], delta) + pair[1]
        return delta, delta

    return jax.lax.scan(one, start, maps, reverse=backward)[1]


def _product(maps: tuple[jax.Array, jax.Array], zero: jax.Array, backward: bool) -> tuple[jax.Array, jax.Array]:
    """All maps of a device as one."""
    size, samples = maps[0].shape[1], maps[0].shape[2]
    eye = jnp.broadcast_to(jnp.eye(size, dtype=zero.dtype)[:, None], (size, samples, size))
    return jax.lax.scan(lambda done, pair: (compose(done, pair), None), (eye, zero), maps, reverse=backward)[0]


def _entering(grid: Grid, whole: tuple[jax.Array, jax.Array], zero: jax.Array) -> jax.Array:
    """The correction where the run enters this device's share, from the devices' maps as a whole."""
    gathered = grid.backend.all_gather(jax.tree.map(lambda x: x[None], whole))
    # Every device runs through all devices' maps itself: one gather, where a chain would wait for each device in turn.
    after = _loop(gathered, zero, grid.backward)
    before = jnp.concatenate([after[1:], zero[None]] if grid.backward else [zero[None], after[:-1]])
    entered: jax.Array = entry(before, grid.backend.index())
    return entered
