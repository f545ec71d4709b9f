"""Relaxation: all intervals of a level at once, each from its C-point through its slots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

from jaxmgrit.system.grid import Grid, run_interval

if TYPE_CHECKING:
    from jaxmgrit._types import Layers, Mask, State

PyTree = Any


def f_relax(grid: Grid, ends: State, rhs: State, initial: State) -> PyTree:
    """F-relaxation and the step to the next C-point: from each C-point, the value its interval arrives at.

    F-points are not kept. The result at interval j is Phi(u^{c-1}) + g^c for the C-point c at its end.

    Args:
        grid: the level.
        ends: C-points, leaves (share, ...).
        rhs: right-hand side g at every slot, leaves (share, factor, ...), or None.
        initial: C-point 0, without a leading axis.
    """

    def arrive(start: State, block: Layers, mask: Mask, source: State) -> PyTree:
        return run_interval(grid, start, block, mask, source)[0]

    # All start from the C-points as they are, none waits for its neighbour: that is the parallelism over the layers.
    return grid.sweep(arrive, ends, initial, grid.blocks, grid.mask, rhs)


def c_relax(ends: State, arrived: State, weight: float) -> PyTree:
    """Weighted C-relaxation: u <- w (Phi(u^{c-1}) + g^c) + (1 - w) u at every C-point.

    Args:
        ends: C-points, leaves (share, ...).
        arrived: what their intervals arrived at.
        weight: w; 1 is plain C-relaxation.
    """
    # The plain one must not cost a pass over all C-points.
    if weight == 1:
        return arrived
    return jax.tree.map(lambda new, old: weight * new + (1 - weight) * old, arrived, ends)


def fc_relax(grid: Grid, nu: int, ends: State, rhs: State, initial: State, weight: float = 1.0) -> PyTree:
    """The C-points after nu FC-relaxations."""
    for _ in range(nu):
        ends = c_relax(ends, f_relax(grid, ends, rhs, initial), weight)
    return ends
