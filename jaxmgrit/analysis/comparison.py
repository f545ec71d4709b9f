"""How inexact an inexact gradient is: its angle to the exact one, and how fast state and adjoint cycles converge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmgrit.solvers.sequential import Sequential
from jaxmgrit.system.partition import Level, lay_out
from jaxmgrit.training.common import Extra
from jaxmgrit.training.objective import Training
from jaxmgrit.training.schedules.base import Setting
from jaxmgrit.training.schedules.cycles_then_gradient import CyclesThenGradient

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays
    from jaxmgrit.training.one_shot import OneShot
    from jaxmgrit.training.state import Params, TrainState

PyTree = Any


class Comparison(NamedTuple):
    """The inexact gradient beside the exact one, at the same parameters.

    Attributes:
        cosine: of the angle between them; a step against the inexact gradient descends if it is positive.
        distance: norm of their difference over the norm of the exact one.
        factor: by which the last residual norm of the state shrinks if the same cycles are done once more; 0 for a
            sequential solve.
        adjoint_factor: of the adjoint, likewise.

    Example:
        >>> import jaxmgrit as jm
        >>> comparison = jm.Comparison(cosine=0.99, distance=0.15, factor=0.2, adjoint_factor=0.3)
        >>> comparison.distance < 0.2 and max(comparison.factor, comparison.adjoint_factor) < 1  # it will do
        True
    """

    cosine: jax.Array
    distance: jax.Array
    factor: jax.Array
    adjoint_factor: jax.Array


def compare(
    trainer: OneShot,
    state: TrainState,
    batch: tuple[Any, Any],
    samples: jax.Array | None = None,
    *,
    context: PyTree = None,
    key: Any = None,
) -> Comparison:
    """Compare the gradient that the next step would use with the exact one; pure, jit it.

    It costs about two steps and one sequential gradient, and leaves the state as it is.

    Args:
        trainer: what trains.
        state: of the trainer.
        batch: as for `trainer.step`.
        samples: likewise.
        context: likewise.
        key: likewise.

    Returns:
        A `Comparison` of scalars, shape ().

    Raises:
        TypeError, ValueError: as `trainer.step`, of a state or batch that does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm, optax
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> loss = lambda closing, u, y: (jnp.mean((u.sum(-1) - y) ** 2), None)
        >>> trainer = jm.OneShot(jm.Problem(lambda opening, x: x, step, loss, h=1 / 16), optax.sgd(0.1))
        >>> batch = jnp.ones((2, 3)), jnp.zeros(2)
        >>> state = trainer.init(jm.Params(None, jnp.full((16, 3, 3), 0.1), None), batch)
        >>> bool(jm.compare(trainer, state, batch).cosine > 0.9)
        True
    """
    training, layers, extra = trainer.training, state.layers, Extra(context, key)
    warm = trainer.opening_values(state, batch, samples, key).warm
    first = training.evaluate(state.params, warm, batch, layers, extra)
    again = training.evaluate(state.params, first.solved.warm, batch, layers, extra)
    exact = _exact_gradient(training, state.params, batch, layers, extra)

    def inner(a: Params, b: Params) -> jax.Array:
        whole = optax.tree.vdot(a._replace(layers=None), b._replace(layers=None))
        if not jax.tree.leaves(a.layers):
            return jnp.asarray(whole)
        return training.backend.total(optax.tree.vdot(a.layers, b.layers)) + whole

    def ratio(after: jax.Array, before: jax.Array) -> jax.Array:
        return jnp.where(before > 0, after / jnp.where(before > 0, before, 1), 0)

    norm, own = jnp.sqrt(inner(exact, exact)), training.norm(first.gradients)
    return Comparison(
        ratio(inner(first.gradients, exact), norm * own),
        ratio(training.norm(optax.tree.sub(first.gradients, exact)), norm),
        ratio(again.solved.residual_norm, first.solved.residual_norm),
        ratio(again.solved.adjoint_residual_norm, first.solved.adjoint_residual_norm),
    )


def _exact_gradient(training: Training, params: Params, batch: tuple[Any, Any], layers: int, extra: Extra) -> Params:
    """The exact gradient, laid out as the trainer's own."""
    solver, _, backend = training.setting
    # Segments of the trainer's own interval length, so that the layers stay where they are.
    segment = Sequential(solver.interval)
    exactly = Training(training.problem, CyclesThenGradient(), Setting(segment, segment, backend))
    level, target = (t.schedule.level(layers, t.setting) for t in (training, exactly))

    def moved(tree: Arrays, target: Level) -> PyTree:
        if level.slots == target.slots:
            return tree
        whole = jax.tree.map(lambda x: x[:layers], backend.gather(tree))
        return backend.scatter(lay_out(whole, target))

    spread = params._replace(layers=moved(params.layers, target))
    gradients = exactly.evaluate(spread, (None, None), batch, layers, extra).gradients
    return gradients._replace(layers=training.mask(moved(gradients.layers, level), layers))
