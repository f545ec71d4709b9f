"""What one iteration of one-shot training is given and finds, whatever its schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxmgrit.backend.base import Backend
from jaxmgrit.solvers.mgrit.options import Solver

PyTree = Any


class Head(NamedTuple):
    """The loss at the final state, with its derivatives."""

    loss: jax.Array
    aux: PyTree
    d_closing: PyTree
    lam_final: PyTree


class Found(NamedTuple):
    """What one iteration finds at given parameters: the loss, an inexact gradient, how inexact, and warm values."""

    head: Head
    layers: PyTree
    lam_initial: PyTree
    running_cost: jax.Array
    residual_norm: jax.Array
    adjoint_residual_norm: jax.Array
    result: jax.Array
    warm: PyTree


class Setting(NamedTuple):
    """Solvers and backend of a training."""

    solver: Solver
    adjoint: Solver
    backend: Backend


LossHead = Callable[[PyTree], Head]
