"""What one iteration of one-shot training is given and finds, whatever its schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxmgrit._types import State
    from jaxmgrit.backend.base import Backend
    from jaxmgrit.solvers.base import Solver
    from jaxmgrit.system.network import Network
    from jaxmgrit.system.partition import Level

PyTree = Any


class Head(NamedTuple):
    """The loss at the final state, with its derivatives."""

    loss: jax.Array
    aux: PyTree
    d_closing: PyTree
    lam_final: PyTree


class Found(NamedTuple):
    """What one iteration finds at given parameters: the loss, an inexact gradient, how inexact, and warm values.

    Of the gradient `layers` are the hidden layers', by slot of the partition (anything in its padding), and `shared` is
    of what all of them share, None if they share nothing; `mismatch` is that of `Info`, 0 where a schedule does not
    say it.
    """

    head: Head
    layers: PyTree
    lam_initial: PyTree
    running_cost: jax.Array
    residual_norm: jax.Array
    adjoint_residual_norm: jax.Array
    result: jax.Array
    warm: PyTree
    shared: PyTree = None
    mismatch: jax.Array | float = 0.0


def mismatch(residuals: tuple[jax.Array, jax.Array], sizes: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The larger of two residual norms, of state and adjoint, each relative to the norm of the values themselves."""

    def relative(residual: jax.Array, size: jax.Array) -> jax.Array:
        # The divisor is guarded too: 0/0 in the branch not taken would raise under `jax_debug_nans`.
        return jnp.where(size > 0, residual / jnp.where(size > 0, size, 1), 0)

    return jnp.maximum(*(relative(r, s) for r, s in zip(residuals, sizes, strict=True)))


class Setting(NamedTuple):
    """Solvers and backend of a training."""

    solver: Solver
    adjoint: Solver
    backend: Backend

    @property
    def solvers(self) -> tuple[Solver, Solver]:
        """The state's and the adjoint's."""
        return self.solver, self.adjoint


LossHead = Callable[[PyTree], Head]


class Schedule(Protocol):
    """What one iteration of one-shot training does: a frozen object with these four functions.

    Warm values, what an iteration leaves for the next, are a tuple of pytrees with one entry per interval, or None.
    """

    def level(self, layers: int, setting: Setting) -> Level:
        """The partition the layers are kept in.

        Raises:
            ValueError: solvers that this schedule cannot honour.
        """

    def warm_levels(self, layers: int, setting: Setting) -> tuple[Level, ...]:
        """The partitions the warm values belong to, one for each entry of the tuple."""

    def init(self, layers: int, u0: State, setting: Setting) -> tuple[PyTree, ...]:
        """Warm values before the first iteration, leaves (intervals, ...)."""

    def gradient(
        self, network: Network, u0: State, head: LossHead, warm: tuple[PyTree, ...], setting: Setting
    ) -> Found:
        """Loss and inexact gradient at the network's parameters, and warm values for the next iteration."""


def check_schedule(schedule: Any, name: str) -> None:
    """Raise a TypeError unless `schedule` is an object that can do an iteration."""
    wanted = ("level", "warm_levels", "init", "gradient")
    # A class has the four functions as well: that is a schedule without its parentheses.
    if isinstance(schedule, type) or not all(hasattr(schedule, attribute) for attribute in wanted):
        raise TypeError(
            f"{name}={schedule!r} is not a schedule; give jm.CyclesThenGradient() or jm.PredictThenSweep()."
        )
