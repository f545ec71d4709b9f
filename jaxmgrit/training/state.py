"""What training carries from one iteration to the next, and what an iteration tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

if TYPE_CHECKING:
    from jaxmgrit.training.problem import Params

PyTree = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything training carries from one iteration to the next; donate it to the jitted step.

    Attributes:
        params: parameters; the layers are kept in the schedule's partition (see `OneShot.params` for the plain ones).
        optimizer: the optimiser's state.
        warm: the schedule's warm values, which belong to the samples they were computed for.
        iteration: updates done so far.
        layers: N.
        batch: a fingerprint of the batch that the warm values belong to; 0 where it may be any, such as after an
            exchange of `warm` by hand.
    """

    params: Params
    optimizer: PyTree
    warm: PyTree
    iteration: jax.Array
    layers: int = field(metadata={"static": True})
    batch: jax.Array | None = None


class Info(NamedTuple):
    """What an iteration saw, at the parameters before its update.

    Attributes:
        loss: at the (inexact) final state.
        aux: the loss function's aux.
        objective: loss, running cost and penalty.
        grad_norm: Euclidean norm of the (inexact) gradient of the objective.
        residual_norm: of the state, the last recorded; 0 for a sequential solve.
        adjoint_residual_norm: of the adjoint, likewise.
        result: the worse of the two solves' codes, see `Result` and `check`.
        mismatch: the residual norm over the norm of the C-points themselves, of state or adjoint, whichever is larger:
            what a coarse solve misses, free with every sweep; 0 for a sequential solve.
    """

    loss: jax.Array
    aux: PyTree
    objective: jax.Array
    grad_norm: jax.Array
    residual_norm: jax.Array
    adjoint_residual_norm: jax.Array
    result: jax.Array
    mismatch: jax.Array
