"""The fused sweep: state, adjoint and parameter gradient of an interval in one pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import add, fold, size_in_bytes, unfold, where
from jaxmgrit.system.grid import Linearised
from jaxmgrit.system.linearise import AdjointBlock, Tape, record, unroll
from jaxmgrit.system.products import flat_products
from jaxmgrit.system.step import Equation, Shared, Slot

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, State
    from jaxmgrit.system.grid import Grid

PyTree = Any


class Gradients(NamedTuple):
    """Cotangents of all layers and what they share; the running cost's sum comes along."""

    slots: PyTree
    shared: PyTree
    cost: jax.Array


class SideBySide(NamedTuple):
    """Tapes of all intervals, several of them side by side in one.

    Attributes:
        tapes: by `vjp_all`; leaves (share // chunk, factor, ...), without the first axis where there is one chunk.
        chunk: how many intervals are side by side.
        linear: whether the pullbacks are linear in the adjoint: no running cost, no outputs.
    """

    tapes: Tape
    chunk: int
    linear: bool


def record_side_by_side(
    equation: Equation, grid: Grid, shared: Shared, offset: int, step_sizes: bool, tangents: State
) -> SideBySide | None:
    """Linearise all layers once, for the intervals' Jacobians and the gradients; None where that is not possible.

    It is where no interval is incomplete, and where all tapes are at most `_TAPES_BYTES` or one sweep's anyway. The
    tangents, leaves (tangents, ...), are pushed through all intervals on the way forward: as a row of a Jacobian costs
    as much as a column, and on a CPU less than half as much.
    """
    chunk = _chunk(grid)
    if chunk == 0:
        return None

    pushed = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], chunk, *x.shape[1:])), tangents)

    def record_chunk(block: AdjointBlock) -> Tape:
        return _record(equation, shared, _beside(block), offset, step_sizes, True, pushed)

    if chunk == grid.level.share:
        tapes = record_chunk(grid.blocks)
    else:
        blocks = fold(grid.blocks, chunk)
        shapes = jax.eval_shape(lambda x: jax.lax.map(record_chunk, x), blocks)
        if size_in_bytes(shapes) > _TAPES_BYTES:
            return None
        tapes = jax.lax.map(record_chunk, blocks)
    return SideBySide(tapes, chunk, equation.running_cost is None and not equation.outputs)


def linearised(recorded: SideBySide, share: int) -> Linearised:
    """All intervals as affine maps of the adjoint, from what has been recorded."""

    def one(value: State, taped: PyTree) -> tuple[PyTree, None]:
        pullback, seed = taped
        return pullback((value, seed))[1], None

    def through(tape: Tape) -> Linearised:
        constant = None
        if not recorded.linear:
            constant = jax.lax.scan(one, jax.tree.map(jnp.zeros_like, tape.end), tape.taped, reverse=True)[0]
        # Leaves (chunk, d, ...): whatever belongs to intervals has them as the first axis.
        return Linearised(jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tape.pushed), constant)

    if recorded.chunk == share:
        return through(recorded.tapes)
    made: Linearised = unfold(jax.lax.map(through, recorded.tapes))
    return made


# Tapes of so many bytes are kept rather than recorded again.
_TAPES_BYTES = 1 << 25


def _chunk(grid: Grid) -> int:
    """How many intervals may be linearised side by side; 0: none.

    What padding would add to a sum over intervals cannot be taken out of it.
    """
    chunk = min(grid.batch, grid.level.share)
    return chunk if chunk > 1 and grid.level.share % chunk == 0 and grid.mask is None else 0


def _beside(block: AdjointBlock) -> AdjointBlock:
    """Intervals side by side: the slots' axis first."""
    slots, states = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (block.slots, block.states))
    return block._replace(slots=slots, states=states)


def _record(
    equation: Equation,
    shared: Shared,
    block: AdjointBlock,
    offset: int,
    step_sizes: bool,
    together: bool,
    tangents: State = None,
) -> Tape:
    def advance(slot: Slot, u: State) -> PyTree:
        return jax.vmap(partial(equation.advance, shared=shared))(slot, u)

    return record(
        lambda slot, u: equation.vjp_all(slot, u, shared, step_sizes, together), block, offset, advance, tangents
    )


def vjp_sweep(
    equation: Equation,
    grid: Grid,
    shared: Shared,
    offset: int,
    ends: State,
    lam_final: State,
    step_sizes: bool,
    finish: Callable[..., tuple[PyTree, PyTree]] = lambda arrived, lam, extra: (None, None),
    extra: Arrays = None,
    total: State = None,
    edge: State = None,
    tapes: Tape | SideBySide | None = None,
) -> tuple[Gradients, PyTree, PyTree]:
    """State, adjoint and gradient of all intervals in one pass: the fused sweep.

    Args:
        equation: the state's.
        grid: the adjoint's finest grid.
        shared: what the layers share.
        offset: where inside the intervals the state is reset to a C-point.
        ends: C-points of the adjoint, leaves (share, ...).
        lam_final: C-point 0 of the adjoint.
        step_sizes: whether h (and what the step closes over) is to be differentiated too.
        finish: (what an interval's state arrives at, its adjoint, its entry of `extra`) -> what is wanted of them,
            while they are in the cache, and the increment to its entry of `total`.
        extra: leaves (share, ...).
        total: leaves (share, ...).
        edge: the adjoint that enters this device's intervals, where that is known.
        tapes: of all intervals by `vjp_all`, where they have been recorded, leaves (share, ...) or side by side.

    Returns:
        The gradients of this device's layers, leaves (share * factor, ...), and what `finish` makes, leaves (share,
        ...).
    """
    recorded = tapes if isinstance(tapes, SideBySide) else None
    # Only what is shared gains: its cotangent is then one product over many intervals, not one each and their sum.
    if recorded or (tapes is None and _chunk(grid) and jax.tree.leaves(zero_shared(shared, step_sizes))):
        starts = grid.starts(ends, lam_final, edge)
        return _side_by_side(equation, grid, shared, offset, starts, step_sizes, finish, extra, total, recorded)

    def one(lam: State, block: AdjointBlock, tape: Tape | None, extra: Arrays) -> tuple[PyTree, PyTree]:
        arrived, lam, gradients = interval_gradient(equation, shared, block, offset, lam, step_sizes, tape)
        kept, increment = finish(arrived, lam, extra)
        return (gradients, kept), increment

    (gradients, kept), total = grid.accumulate(one, ends, lam_final, total, grid.blocks, tapes, extra, edge=edge)
    summed = jax.tree.map(lambda x: jnp.sum(x, axis=0), (gradients.shared, gradients.cost))
    return Gradients(unfold(gradients.slots), *summed), kept, total


def _side_by_side(
    equation: Equation,
    grid: Grid,
    shared: Shared,
    offset: int,
    starts: State,
    step_sizes: bool,
    finish: Callable[..., tuple[PyTree, PyTree]],
    extra: Arrays,
    total: State,
    recorded: SideBySide | None,
) -> tuple[Gradients, PyTree, PyTree]:
    """The fused sweep where something shared is differentiated: its cotangent is summed over many intervals at once."""
    chunk = _chunk(grid)

    def several(args: Arrays) -> tuple[PyTree, ...]:
        lam, block, extra, tape = args
        block = _beside(block)
        arrived, lam, gradients = interval_gradient(
            equation, shared, block, offset, lam, step_sizes, tape, together=True
        )
        by_interval = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), gradients.slots)
        return gradients._replace(slots=by_interval), *jax.vmap(finish)(arrived, lam, extra)

    args, tapes = (starts, grid.blocks, extra), recorded.tapes if recorded else None
    if chunk == grid.level.share:
        gradients, kept, increment = several((*args, tapes))
    else:
        gradients, kept, increment = jax.lax.map(several, (*fold(args, chunk), tapes))
        summed = jax.tree.map(lambda x: jnp.sum(x, axis=0), (gradients.shared, gradients.cost))
        slots, kept, increment = unfold((gradients.slots, kept, increment))
        gradients = Gradients(slots, *summed)
    return gradients._replace(slots=unfold(gradients.slots)), kept, add(total, increment)


def interval_gradient(
    equation: Equation,
    shared: Shared,
    block: AdjointBlock,
    offset: int,
    lam: State,
    step_sizes: bool,
    tape: Tape | None = None,
    together: bool = False,
) -> tuple[PyTree, PyTree, Gradients]:
    """The fused sweep of one interval, from the state at its start and the adjoint at its end.

    With `together` of several intervals, which are the axis behind that of the slots.
    """
    if tape is None:
        tape = _record(equation, shared, block, offset, step_sizes, together)

    def one(carry: State, inputs: Arrays) -> tuple[PyTree, PyTree]:
        lam, total = carry
        (pullback, seed), cost, inside = inputs
        d_slot, before, d_shared = (flat_products(pullback) if together else pullback)((lam, seed))
        # Padding repeats an edge layer, whose gradient and cost must not count again.
        own = (d_slot, d_shared, cost)
        d_slot, d_shared, cost = where(inside, own, jax.tree.map(jnp.zeros_like, own))
        return (where(inside, before, lam), add(total, d_shared)), (d_slot, cost)

    start = (lam, zero_shared(shared, step_sizes))
    (lam, total), (d_slots, costs) = jax.lax.scan(
        one, start, (tape.taped, tape.costs, block.mask), reverse=True, unroll=unroll(block.slots, lam)
    )
    d_slots = d_slots if step_sizes else Slot(d_slots)
    return tape.end, lam, Gradients(d_slots, total, jnp.sum(costs))


def zero_shared(shared: Shared, step_sizes: bool) -> Shared:
    """Where the cotangent of what is shared starts from."""
    return jax.tree.map(jnp.zeros_like, shared.differentiated(step_sizes)[0])


def sequential_gradient(
    equation: Equation, grid: Grid, shared: Shared, offset: int, lam: State, step_sizes: bool
) -> tuple[PyTree, Gradients]:
    """Adjoint and gradient in one run through the intervals of one device, one after another.

    Returns:
        The adjoint at the left end of every interval, and the gradients.
    """

    def one(carry: State, block: AdjointBlock) -> tuple[PyTree, PyTree]:
        lam, total = carry
        _, lam, gradients = interval_gradient(equation, shared, block, offset, lam, step_sizes)
        return (lam, add(total, gradients.shared)), (lam, gradients.slots, gradients.cost)

    start = (lam, zero_shared(shared, step_sizes))
    (_, total), (ends, slots, costs) = jax.lax.scan(one, start, grid.blocks, reverse=True)
    return ends, Gradients(unfold(slots), total, jnp.sum(costs))
