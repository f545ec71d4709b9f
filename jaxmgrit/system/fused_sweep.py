"""The fused sweep: state, adjoint and parameter gradient of an interval in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import add, fold, unfold, where
from jaxmgrit._types import Arrays, State
from jaxmgrit.system.grid import Grid
from jaxmgrit.system.linearise import AdjointBlock, Tape, record, unroll
from jaxmgrit.system.step import Equation, Shared, Slot

PyTree = Any


class Gradients(NamedTuple):
    """Cotangents of all layers and what they share; the running cost's sum comes along."""

    slots: PyTree
    shared: PyTree
    cost: jax.Array


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
    tapes: Tape | None = None,
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
        tapes: of all intervals by `vjp_all`, where they have been recorded, leaves (share, ...).

    Returns:
        The gradients of this device's layers, leaves (share * factor, ...), and what `finish` makes, leaves (share,
        ...).
    """
    chunk = min(grid.batch, grid.level.share)
    if (
        tapes is None
        and chunk > 1
        and grid.level.share % chunk == 0
        and grid.mask is None
        and jax.tree.leaves(zero_shared(shared, step_sizes))
    ):
        return _side_by_side(
            equation, grid, shared, offset, grid.starts(ends, lam_final, edge), step_sizes, chunk, finish, extra, total
        )

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
    chunk: int,
    finish: Callable[..., tuple[PyTree, PyTree]],
    extra: Arrays,
    total: State,
) -> tuple[Gradients, PyTree, PyTree]:
    """The fused sweep where something shared is differentiated: its cotangent is summed over `chunk` intervals at once.

    For intervals without padding, since what padding would add cannot be taken out of the sum.
    """

    def several(args: Arrays) -> tuple[PyTree, ...]:
        lam, block, extra = args
        slots, states = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (block.slots, block.states))
        block = block._replace(slots=slots, states=states)
        arrived, lam, gradients = interval_gradient(equation, shared, block, offset, lam, step_sizes, together=True)
        by_interval = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), gradients.slots)
        return gradients._replace(slots=by_interval), *jax.vmap(finish)(arrived, lam, extra)

    args = (starts, grid.blocks, extra)
    if chunk == grid.level.share:
        gradients, kept, increment = several(args)
    else:
        gradients, kept, increment = jax.lax.map(several, fold(args, chunk))
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
        tape = record(lambda slot, u: equation.vjp_all(slot, u, shared, step_sizes, together), block, offset)

    def one(carry: State, inputs: Arrays) -> tuple[PyTree, PyTree]:
        lam, total = carry
        (pullback, seed), cost, inside = inputs
        d_slot, before, d_shared = pullback((lam, seed))
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
