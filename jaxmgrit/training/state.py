"""Parameters, what training carries from one iteration to the next, and what an iteration tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax

PyTree = Any


class Params(NamedTuple):
    """All parameters of a network.

    Attributes:
        opening: the opening layer's, any pytree.
        layers: the hidden layers', every leaf with leading axis N.
        closing: the closing (classification) layer's, any pytree.
        shared: parameters that all hidden layers share, any pytree: trained, on every device, their gradient summed
            over layers and devices. The step then has a fourth argument, `common`, see `Common`.

    Example:
        >>> import jax.numpy as jnp, jaxmgrit as jm
        >>> params = jm.Params(opening={"w": jnp.ones((2, 4))}, layers={"w": jnp.ones((16, 4, 4))}, closing=())
        >>> params.layers["w"].shape, params.shared
        ((16, 4, 4), None)
    """

    opening: PyTree
    layers: PyTree
    closing: PyTree
    shared: PyTree = None


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

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> loss = lambda p, u, y: (jnp.mean((u - y) ** 2), None)
        >>> problem = jm.Problem(lambda p, x: x @ p, step, loss, h=0.1)
        >>> params = jm.Params(jnp.eye(2), 0.1 * jnp.ones((16, 2, 2)), ())
        >>> batch = (jnp.ones((3, 2)), jnp.zeros((3, 2)))
        >>> trainer = jm.OneShot(problem, optax.sgd(0.1), solver=jm.MGRIT(4), adjoint=jm.MGRIT(4))
        >>> state = trainer.init(params, batch)
        >>> state, _ = jax.jit(trainer.step, donate_argnums=0)(state, batch)
        >>> int(state.iteration), state.layers
        (1, 16)
    """

    params: Params
    optimizer: PyTree
    warm: PyTree
    iteration: jax.Array
    # Static: it decides shapes, and `jit` must not turn it into an array.
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

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> loss = lambda p, u, y: (jnp.mean((u - y) ** 2), None)
        >>> problem = jm.Problem(lambda p, x: x @ p, step, loss, h=0.1)
        >>> params = jm.Params(jnp.eye(2), 0.1 * jnp.ones((16, 2, 2)), ())
        >>> batch = (jnp.ones((3, 2)), jnp.zeros((3, 2)))
        >>> trainer = jm.OneShot(problem, optax.sgd(0.1), solver=jm.MGRIT(4), adjoint=jm.MGRIT(4))
        >>> state, info = jax.jit(trainer.step)(trainer.init(params, batch), batch)
        >>> bool(info.grad_norm > 0), jm.Result(int(info.result)).name
        (True, 'CYCLES_USED_UP')
    """

    loss: jax.Array
    aux: PyTree
    objective: jax.Array
    grad_norm: jax.Array
    residual_norm: jax.Array
    adjoint_residual_norm: jax.Array
    result: jax.Array
    mismatch: jax.Array
