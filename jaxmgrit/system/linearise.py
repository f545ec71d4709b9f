"""Where the adjoint is linearised: the state's fine values, in the adjoint's intervals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import fold, size_in_bytes, where
from jaxmgrit.system.grid import Grid, by_intervals, points, run_interval
from jaxmgrit.system.partition import Level, relayout

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, State
    from jaxmgrit.system.step import Slot, Vjp

PyTree = Any


def linearise(state: Grid, ends: State, u0: State, target: Level) -> Linearisation:
    """The fine states at which the adjoint of partition `target` is linearised, from the state's C-points.

    The adjoint's intervals end where the state's do only if the coarsening factor divides N. Else each begins at an
    F-point and has a C-point inside, where the recomputation goes on from the C-point's value.
    """
    level, backend = state.level, state.backend
    if (level.slots, level.factor, level.devices) != (target.slots, target.factor, target.devices):
        # Another partition: all N states are made and moved, not recomputed inside the adjoint's intervals.
        before = _before_slots(state, ends, u0)
        states = fold(relayout(before, level, target, backend), target.factor)
        return Linearisation(jax.tree.map(lambda x: x[:, 0], states), states=states)
    starts = state.starts(ends, u0)
    intervals, within = divmod(target.first - level.first, level.factor)

    def moved(values: State, by: int) -> PyTree:
        return values if by == 0 else backend.shift(values, by, None)

    if within == 0:
        return Linearisation(moved(starts, intervals))
    # `within` slots of padding in front of layer 0, so intervals begin at the state's F-points `offset`.
    offset = level.factor - within
    inner = _advance_by(state, starts, offset)
    return Linearisation(moved(inner, intervals + 1), moved(starts, intervals), within)


def _before_slots(state: Grid, ends: State, u0: State) -> PyTree:
    # What is after one slot is before the next, also across devices; u0 is before the first.
    after = points(state, ends, None, u0)
    return state.backend.shift(after, 1, u0)


def _advance_by(state: Grid, starts: State, count: int) -> PyTree:
    """F-relaxation up to the F-point `count` of every interval."""

    def sweep(args: Arrays) -> PyTree:
        start, block, mask = args
        return run_interval(state, start, block, mask, None)[0]

    data = jax.tree.map(lambda x: x[:, :count], (state.blocks, state.mask))
    return by_intervals(sweep, (starts, *data), state.level.share, state.batch)


# Two small layers in one pass of the loops that pull back are a twelfth faster on a CPU than one; four are slower.
# Large ones gain nothing, and take half as long again to compile.
_SMALL_LAYER = 1 << 15


def unroll(slots: Slot, state: PyTree) -> int:
    """Layers in one pass of a loop through an interval, by the bytes of a layer and a state."""
    layers = jax.tree.leaves(slots)[0].shape[0]
    size = size_in_bytes(slots) // layers + size_in_bytes(state)
    return 2 if size <= _SMALL_LAYER else 1


class Linearisation(NamedTuple):
    """The fine states the adjoint is linearised at: recomputed within each interval, or given.

    Attributes:
        starts: state at the left end of each interval, leaves (share, ...).
        resets: C-points of the state that lie inside the intervals, at slot `offset`; None if there are none.
        offset: that slot.
        states: the state before every slot, leaves (share, factor, ...), where they are not to be recomputed.
    """

    starts: PyTree
    resets: PyTree = None
    offset: int = 0
    states: PyTree = None


class AdjointBlock(NamedTuple):
    """Data of the adjoint's intervals on the finest level."""

    slots: Slot
    mask: Any
    starts: PyTree
    resets: PyTree
    states: PyTree


class Tape(NamedTuple):
    """An interval's layers, linearised on the way forward.

    Attributes:
        end: the state at the interval's end.
        costs: running cost of each slot, (factor,).
        taped: of each slot what `pull_state` takes: its pullback and the seed, see `Vjp`; leaves (factor, ...).
        pushed: what tangents at the interval's start become at its end, where any were given; leaves (tangents, ...).
    """

    end: PyTree
    costs: Any
    taped: tuple[PyTree, PyTree]
    pushed: PyTree = None


def record(
    vjp: Callable[[Slot, PyTree], Vjp],
    block: AdjointBlock,
    offset: int,
    advance: Callable[[Slot, PyTree], PyTree] | None = None,
    tangents: PyTree = None,
) -> Tape:
    """Run an interval forward from its start, through the C-point inside if there is one, and keep the pullbacks.

    Recomputing the state and linearising it in one pass evaluates every layer once. What a pullback takes from the
    slot as it is (parameters, say) is not stored again: `lax.scan` hands on inputs that are returned unchanged.

    Args:
        vjp: (slot, state) -> the layer with its pullback.
        block: the interval.
        offset: at which slot the state is reset to the C-point inside.
        advance: (slot, state) -> next state; needed where there are tangents.
        tangents: to be pushed through all layers, leaves (tangents, ...), or None.
    """
    position = None
    if block.resets is not None:
        position = jnp.arange(jax.tree.leaves(block.slots)[0].shape[0]) == offset

    def one(carry: State, inputs: Arrays) -> tuple[PyTree, PyTree]:
        u, tangents = carry
        slot, inside, at_reset, given = inputs
        if given is not None:
            u = given
        if at_reset is not None:
            u = where(at_reset, block.resets, u)
        made = vjp(slot, u)
        after = made.after, None
        if tangents is not None:
            # In one pass with the pullback, so that XLA evaluates the layer once for both.
            assert advance is not None
            _, push = jax.linearize(partial(advance, slot), u)
            after = made.after, jax.vmap(push)(tangents)
        return where(inside, after, (u, tangents)), (made.cost, (made.pullback, made.seed))

    inputs = block.slots, block.mask, position, block.states
    (end, pushed), (costs, taped) = jax.lax.scan(one, (block.starts, tangents), inputs)
    return Tape(end, costs, taped, pushed)


def record_all(vjp: Callable[[Slot, PyTree], Vjp], blocks: AdjointBlock, offset: int, share: int, batch: int) -> Tape:
    """`record` of all intervals, leaves (share, ...): everything that the pullbacks of N layers need."""
    tapes: Tape = by_intervals(lambda block: record(vjp, block, offset), blocks, share, batch)
    return tapes


def pull_state(taped: PyTree, lam: State) -> PyTree:
    """One step of the adjoint on the finest level, back through a linearised layer."""
    pullback, seed = taped
    return pullback((lam, seed))[0]


def pull_linear(position: int, taped: PyTree, lam: State) -> PyTree:
    """A layer's transpose alone, without what the running cost or outputs add; the state's is at `position`."""
    pullback, seed = taped
    return pullback((lam, jax.tree.map(jnp.zeros_like, seed)))[position]
