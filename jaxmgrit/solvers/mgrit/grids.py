"""Grids ready to run: the slots' data on every level, for the state and for the adjoint."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import fold, real_dtype, size_in_bytes, where
from jaxmgrit.backend.local import Local
from jaxmgrit.solvers.mgrit.coarse import all_layers
from jaxmgrit.solvers.mgrit.fas import restrict
from jaxmgrit.solvers.sequential import SEQUENTIAL
from jaxmgrit.system.grid import Grid
from jaxmgrit.system.kept_layers import Kept, over_kept_layers
from jaxmgrit.system.linearise import (
    AdjointBlock,
    Linearisation,
    Tape,
    pull_linear,
    pull_state,
    record,
    record_all,
)
from jaxmgrit.system.partition import Level, coarse_grid_data
from jaxmgrit.system.step import Equation, Shared, Slot, Vjp

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Layers, Mask, State, StepSize
    from jaxmgrit.backend.base import Backend
    from jaxmgrit.solvers.base import Solver

PyTree = Any

# Of the states that go through a sweep together on a CPU, whose first-level caches hold four times as much or more.
_STATES_BYTES = 1 << 13


def sweep_batch(solver: Solver, state: State, platform: str, share: int) -> int:
    """How many intervals go through one batched sweep: the user's choice, or a good one for the platform.

    An accelerator takes all. On a CPU small states go through together, as many as leave room in the first-level cache
    for what a layer computes from them: thin layers alone cannot fill the vector units. Large states go one by one.
    """
    if solver.intervals_per_sweep is not None:
        return min(solver.intervals_per_sweep, share)
    if platform != "cpu":
        return share
    size = size_in_bytes(state)
    return _divisor_near(share, max(1, _STATES_BYTES // max(1, size)))


def _divisor_near(share: int, batch: int) -> int:
    """A batch about as large that divides the share, so that no remainder needs a program of its own."""
    if batch >= share:
        return share
    # From a quarter to twice the batch wanted; where nothing in between divides, a remainder is the lesser evil.
    divisors = [b for b in range(1, share + 1) if share % b == 0 and batch <= 4 * b and b <= 2 * batch]
    return min(divisors, key=lambda b: max(b / batch, batch / b)) if divisors else batch


def coarsen(block: Slot, mask: Mask, solver: Solver) -> Slot:
    """Slots of a level, leaves (share, factor, ...), to one coarse slot per interval, leaves (share, ...)."""
    assert solver.coarse_params is not None
    theta = jax.vmap(solver.coarse_params)(block.theta)
    h = block.h
    # A scalar step size is in no slot; padding repeats the edge slot's, which must not count.
    if h is not None:
        h = jnp.sum(h if mask is None else jnp.where(mask, h, jnp.zeros_like(h)), axis=1)
    return Slot(theta, h)


def _keep_layers(block: Slot, mask: Mask) -> Slot:
    """`coarsen` by `all_layers`: the slots of an interval side by side, each with all the layers it stands for.

    The mask is None where no incomplete interval has a coarse step.
    """
    # Made from the finest level: the interval's slots, axis 1, are the layers, and their mask is the layers'.
    if block.kept is None:
        return Slot(block.theta, block.h, kept=Kept(mask))
    # From a coarse level, leaves (share, factor, stride, ...): a layer counts where it and its slot are inside.
    inside = block.kept.inside
    if inside is None and mask is not None:
        stride = jax.tree.leaves(block.theta)[0].shape[2]
        inside = jnp.broadcast_to(mask[..., None], (*mask.shape, stride))
    elif mask is not None:
        inside = inside & mask[..., None]

    def by_slot(x: Arrays) -> Any:
        return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])

    theta, h, inside = jax.tree.map(by_slot, (block.theta, block.h, inside))
    return Slot(theta, h, kept=Kept(inside))


def _exact(count: int, level: Level, interval: int, backend: Backend) -> Any:
    """Which of this device's slots of a coarse level begin within the first intervals: (share, factor) or None."""
    if count == 0:
        return None
    # Slot j of the level begins with the finest level's interval j * stride / m.
    slots = level.share * level.factor
    slot = backend.index() * slots + jnp.arange(slots, dtype=jnp.int32) - level.first
    return ((slot >= 0) & (slot * (level.stride // interval) < count)).reshape(level.share, level.factor)


def _padded_by_interval(theta: Layers, mask: Mask) -> PyTree:
    """Let the padding of an incomplete interval repeat its last layer, so that its coarse layer is made of it alone."""
    if mask is None:
        return theta
    last = jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    return where(mask, theta, jax.tree.map(lambda x: x[jnp.arange(x.shape[0]), last][:, None], theta))


def _backend_of(level: Level, backend: Backend) -> Backend:
    """The devices that have different intervals of a level."""
    # Neighbours have a part in common, so others are size / devices places apart; a single part is whole everywhere.
    return Local() if level.devices == 1 < backend.size else backend.every(backend.size // level.devices)


def coarse_blocks(
    block: Slot, levels: tuple[Level, ...], solver: Solver, backend: Backend, extra: Arrays = None
) -> tuple[tuple[Slot, ...], PyTree]:
    """The slots of the levels below the finest, leaves (share, factor, ...), made from those of the finest.

    `extra`, values by interval of the finest level, goes to the next level in the same message.
    """
    blocks = []
    for depth, (fine, coarse) in enumerate(itertools.pairwise(levels)):
        on = _backend_of(fine, backend)
        mask = fine.slot_mask(on.index())
        if solver.coarse_params is all_layers:
            made = _keep_layers(block, mask if fine.ragged else None)
        else:
            if fine.ragged:
                block = block._replace(theta=_padded_by_interval(block.theta, mask))
            made = coarsen(block, mask, solver)
        if depth == 0:
            made, extra = coarse_grid_data((made, extra), fine, coarse, on)
        else:
            made = coarse_grid_data(made, fine, coarse, on)
        block = fold(made, coarse.factor)
        if block.kept is not None:
            exact = _exact(solver.exact_first, coarse, levels[0].factor, _backend_of(coarse, backend))
            blocks.append(block._replace(kept=block.kept._replace(exact=exact)))
        else:
            blocks.append(block)
    return tuple(blocks), extra


def state_grids(
    equation: Equation,
    slots: Slot,
    shared: Shared,
    levels: tuple[Level, ...],
    solver: Solver,
    backend: Backend,
    batch: int,
) -> tuple[Grid, ...]:
    """The state's grids on this device, from its slots of the finest level (leading axis share * factor)."""
    block = fold(slots, levels[0].factor)
    coarse, _ = coarse_blocks(block, levels, solver, backend)
    return grids_of(equation, (block, *coarse), shared, levels, backend, batch)


def grids_of(
    equation: Equation,
    blocks: tuple[Slot, ...],
    shared: Shared,
    levels: tuple[Level, ...],
    backend: Backend,
    batch: int,
) -> tuple[Grid, ...]:
    """The state's grids on this device, from the slots of all levels, leaves (share, factor, ...)."""

    def grid(depth: int, level: Level) -> Grid:
        def advance(slot: Slot, u: State) -> PyTree:
            return equation.advance(slot, u, shared, level.stride, depth == 0)

        return Grid(level, _backend_of(level, backend), blocks[depth], advance, batch=batch)

    return tuple(grid(depth, level) for depth, level in enumerate(levels))


def adjoint_grids(
    equation: Equation,
    forward: tuple[Grid, ...],
    shared: Shared,
    linearisation: Linearisation,
    solver: Solver,
    coarse_starts: PyTree = None,
    tapes: Tape | None = None,
) -> tuple[Grid, ...]:
    """The adjoint's grids on this device: the state's in the adjoint's partition, transposed and run backwards.

    The step of level l from the end of a slot to its start is the transpose of that slot's step, linearised at the
    fine state at its start; or, where the solver asks for inner values, a coarse step of the layers' transposes, each
    linearised at its own fine state.

    Args:
        equation: the state's.
        forward: the state's grids, in the adjoint's partition.
        shared: what the layers share.
        linearisation: the fine states.
        solver: the adjoint's.
        coarse_starts: the states at which level 1 is linearised, leaves (share, factor, ...), where known.
        tapes: of all intervals by `vjp_all`, where they have been recorded.
    """
    lin, finest = linearisation, forward[0]
    block = AdjointBlock(finest.blocks, finest.mask, lin.starts, lin.resets, lin.states)
    grids = [
        replace(
            finest,
            blocks=block,
            advance=pull_state,
            expand=partial(_expand, equation, shared, lin.offset),
            backward=True,
        )
    ]
    if len(forward) > 1 and solver.inner_values:
        # The state's place in what a pullback returns: (slot, state, shared) by `vjp_all`, (state,) by `vjp_state`.
        position = 1
        if tapes is None:
            position, level = 0, finest.level
            vjp = partial(_vjp_state, equation, shared)
            tapes = record_all(vjp, block, lin.offset, level.share, finest.batch)
        return grids[0], *_of_layers(equation, forward, partial(pull_linear, position), tapes, solver)
    starts = lin.starts
    for depth, grid in enumerate(forward[1:]):
        known = depth == 0 and coarse_starts is not None
        blocks = (grid.blocks, coarse_starts if known else restrict(grids[-1], grid, starts))
        # The fine state at the left end of every interval of this level, for the level below: injection again.
        starts = jax.tree.map(lambda x: x[:, 0], blocks[1])
        advance = partial(_transpose, equation, shared, grid.level.stride)
        grids.append(replace(grid, blocks=blocks, advance=advance, backward=True))
    return tuple(grids)


def _of_layers(
    equation: Equation, forward: tuple[Grid, ...], pull: Callable[..., PyTree], tapes: Tape, solver: Solver
) -> Iterator[Grid]:
    """The adjoint's coarse grids from the pullbacks of all layers."""
    levels = tuple(grid.level for grid in forward)
    assert equation.coarse_step is not None
    # Pullbacks are pytrees of arrays with the layers as leading axes, so they are laid out like parameters.
    blocks, _ = coarse_blocks(Slot(tapes.taped), levels, solver, forward[0].backend)
    for grid, (taped, _, _, kept) in zip(forward[1:], blocks, strict=True):
        slots = Slot(taped, kept=kept)
        advance = partial(_pull_layers, equation.coarse_step, pull, grid.level.stride)
        yield replace(grid, blocks=slots, advance=advance, backward=True)


def _pull_layers(
    coarse_step: Callable[..., PyTree], pull: Callable[..., PyTree], stride: int, slot: Slot, lam: State
) -> PyTree:
    def step(taped: PyTree, value: State, h: StepSize) -> PyTree:
        return pull(taped, value)

    h = jnp.zeros((stride,), real_dtype(lam))  # the pullbacks have theirs
    return over_kept_layers(coarse_step, step, slot.theta, lam, h, stride, slot.kept or Kept(), reverse=True)


def _vjp_state(equation: Equation, shared: Shared, slot: Slot, u: State) -> Vjp:
    return equation.vjp_state(slot, u, shared)


def _transpose(equation: Equation, shared: Shared, stride: int, slot_and_state: PyTree, lam: State) -> PyTree:
    slot, u = slot_and_state
    return equation.transpose(slot, u, shared, lam, stride)


def _expand(equation: Equation, shared: Shared, offset: int, block: AdjointBlock) -> PyTree:
    return record(partial(_vjp_state, equation, shared), block, offset).taped


def finest_grid(equation: Equation, slots: Layers, shared: PyTree, level: Level, u0: State, backend: Backend) -> Grid:
    """The state's finest grid alone, of a given partition."""
    batch = sweep_batch(SEQUENTIAL, u0, backend.platform, level.share)
    return state_grids(equation, slots, shared, (level,), SEQUENTIAL, backend, batch)[0]
