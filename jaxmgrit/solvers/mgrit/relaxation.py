"""Relaxation: all intervals of a level at once, each from its C-point through its slots."""

from __future__ import annotations

from typing import Any

from jaxmgrit.system.grid import Grid, run_interval

PyTree = Any


def f_relax(grid: Grid, ends: PyTree, rhs: PyTree, initial: PyTree) -> PyTree:
    """F-relaxation and the step to the next C-point: from each C-point, the value its interval arrives at.

    F-points are not kept. The result at interval j is Phi(u^{c-1}) + g^c for the C-point c at its end.

    Args:
        grid: the level.
        ends: C-points, leaves (share, ...).
        rhs: right-hand side g at every slot, leaves (share, factor, ...), or None.
        initial: C-point 0, without a leading axis.
    """

    def arrive(start: PyTree, block: PyTree, mask: Any, source: PyTree) -> PyTree:
        return run_interval(grid, start, block, mask, source)[0]

    return grid.sweep(arrive, ends, initial, grid.blocks, grid.mask, rhs)


def c_relax(grid: Grid, arrived: PyTree) -> PyTree:
    """C-relaxation: each C-point becomes what its interval arrived at."""
    return arrived


def fc_relax(grid: Grid, nu: int, ends: PyTree, rhs: PyTree, initial: PyTree) -> PyTree:
    """The C-points after nu FC-relaxations."""
    for _ in range(nu):
        ends = c_relax(grid, f_relax(grid, ends, rhs, initial))
    return ends
