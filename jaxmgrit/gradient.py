"""The fused sweep: state, adjoint and parameter gradient of an interval in one pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmgrit.equation import Equation, Shared, Slot
from jaxmgrit.grids import UNROLL, AdjointBlock, record
from jaxmgrit.pytree import add, split, unfold, where
from jaxmgrit.relaxation import Grid, by_intervals

PyTree = Any


class Gradients(NamedTuple):
    """Cotangents of all layers and what they share; the running cost's sum comes along."""

    slots: PyTree
    shared: PyTree
    cost: jax.Array


def vjp_sweep(
    equation: Equation, grid: Grid, shared: Shared, offset: int, lam: PyTree, step_sizes: bool
) -> tuple[PyTree, PyTree, Gradients]:
    """State, adjoint and gradient of all intervals in one pass: the fused sweep.

    Args:
        equation: the state's.
        grid: the adjoint's finest grid.
        shared: what the layers share.
        offset: where inside the intervals the state is reset to a C-point.
        lam: adjoint at the right end of each interval, leaves (share, ...).
        step_sizes: whether h (and what the step closes over) is to be differentiated too.

    Returns:
        What state and adjoint arrive at, leaves (share, ...), and the gradients of this device's layers, leaves
        (share * factor, ...).
    """

    def one(args: tuple[PyTree, AdjointBlock]) -> tuple[PyTree, PyTree, PyTree]:
        lam, block = args
        return interval_gradient(equation, shared, block, offset, lam, step_sizes)

    arrived, lam, gradients = by_intervals(one, (lam, grid.blocks), grid.level.share, grid.batch)
    slots, rest = gradients.slots, (gradients.shared, gradients.cost)
    total = jax.tree.map(lambda x: jnp.sum(x, axis=0), rest)
    return arrived, lam, Gradients(unfold(slots), *total)


def interval_gradient(
    equation: Equation, shared: Shared, block: AdjointBlock, offset: int, lam: PyTree, step_sizes: bool
) -> tuple[PyTree, PyTree, Gradients]:
    """The fused sweep of one interval, from the state at its start and the adjoint at its end."""
    tape = record(lambda slot, u: equation.vjp_all(slot, u, shared, step_sizes), block, offset)

    def one(carry: PyTree, inputs: PyTree) -> tuple[PyTree, PyTree]:
        lam, total = carry
        pullback, cost, inside = inputs
        d_slot, before, d_shared = pullback((lam, jnp.ones_like(cost)))
        found = (d_slot, d_shared, cost)
        d_slot, d_shared, cost = where(inside, found, jax.tree.map(jnp.zeros_like, found))
        return (where(inside, before, lam), add(total, d_shared)), (d_slot, cost)

    start = (lam, zero_shared(shared, step_sizes))
    (lam, total), (d_slots, costs) = jax.lax.scan(
        one, start, (tape.pullbacks, tape.costs, block.mask), reverse=True, unroll=UNROLL
    )
    d_slots = d_slots if step_sizes else Slot(d_slots)
    return tape.end, lam, Gradients(d_slots, total, jnp.sum(costs))


def zero_shared(shared: Shared, step_sizes: bool) -> Shared:
    """Where the cotangent of what is shared starts from."""
    return jax.tree.map(jnp.zeros_like, split(shared)[0]) if step_sizes else Shared()


def sequential_gradient(
    equation: Equation, grid: Grid, shared: Shared, offset: int, lam: PyTree, step_sizes: bool
) -> tuple[PyTree, Gradients]:
    """Adjoint and gradient in one run through the intervals of one device, one after another.

    Returns:
        The adjoint at the left end of every interval, and the gradients.
    """

    def one(carry: PyTree, block: AdjointBlock) -> tuple[PyTree, PyTree]:
        lam, total = carry
        _, lam, gradients = interval_gradient(equation, shared, block, offset, lam, step_sizes)
        return (lam, add(total, gradients.shared)), (lam, gradients.slots, gradients.cost)

    start = (lam, zero_shared(shared, step_sizes))
    (_, total), (ends, slots, costs) = jax.lax.scan(one, start, grid.blocks, reverse=True)
    return ends, Gradients(unfold(slots), total, jnp.sum(costs))
