"""What a trainer does, compiled: an iteration, a comparison with the exact gradient, exact evaluations."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax

import jaxmgrit as jm
from experiments.config.schema import Config
from experiments.problems import Data
from experiments.training.batches import Batch, Batches
from experiments.training.evaluation import Evaluator, evaluator
from jaxmgrit.training.trainer import Trainer


class Programs(NamedTuple):
    """A trainer and what it does, each compiled when first used.

    Attributes:
        trainer: The trainer.
        update: One iteration; it uses up the state it is given.
        compare: How inexact its gradient would be.
        refresh: Warm values one iteration nearer to their fixed point, everything else as it is.
        exact: Exact evaluations on the way (False) and at the end (True), by data set.
    """

    trainer: Trainer
    update: Callable[[Any, Batch], tuple[Any, Any]]
    compare: Callable[[Any, Batch], jm.Comparison]
    refresh: Callable[[Any, Batch], Any]
    exact: dict[bool, dict[str, Evaluator]]


def programs(config: Config, data: Data, trainer: Trainer, batches: Batches) -> Programs:
    """The programs of a trainer.

    Args:
        config: Of the run.
        data: What is trained on and evaluated.
        trainer: The trainer, of the network that is trained at the moment.
        batches: What its iterations train on.
    """
    exact = _exact(config, data, trainer)
    return Programs(trainer, update(trainer, batches), _comparison(trainer, batches), _refresh(trainer, batches), exact)


def _exact(config: Config, data: Data, trainer: Trainer) -> dict[bool, dict[str, Evaluator]]:
    parts = {"train": data.train, "validation": data.validation}
    return {
        at_end: {
            name: evaluator(trainer.problem, trainer.evaluate, part, config.dtype, points)
            for name, part in parts.items()
        }
        for at_end, points in ((False, config.evaluation.points), (True, config.evaluation.points_at_end))
    }


def update(trainer: Trainer, batches: Batches) -> Callable[[Any, Batch], tuple[Any, Any]]:
    """One iteration, compiled; it uses up the state it is given."""
    if isinstance(trainer, jm.PublishedLoop):
        published = trainer
        return jax.jit(lambda state, batch: published.step(state, batch.points), donate_argnums=0)
    assert isinstance(trainer, jm.OneShot)
    one_shot = trainer

    def step(state: jm.TrainState, batch: Batch) -> tuple[jm.TrainState, jm.Info]:
        return one_shot.step(_started(one_shot, batches, state, batch), batch.points, batch.samples)

    return jax.jit(step, donate_argnums=0)


def _comparison(trainer: Trainer, batches: Batches) -> Callable[[Any, Batch], jm.Comparison]:
    def compare(state: jm.TrainState, batch: Batch) -> jm.Comparison:
        assert isinstance(trainer, jm.OneShot)
        return jm.compare(trainer, _started(trainer, batches, state, batch), batch.points, batch.samples)

    # Without donation: the iteration itself still needs the state.
    return jax.jit(compare)


def _refresh(trainer: Trainer, batches: Batches) -> Callable[[Any, Batch], Any]:
    def warmed(state: jm.TrainState, batch: Batch) -> jm.TrainState:
        assert isinstance(trainer, jm.OneShot)
        return replace(state, warm=trainer.step(state, batch.points, batch.samples)[0].warm)

    return jax.jit(warmed)


def _started(trainer: jm.OneShot, batches: Batches, state: jm.TrainState, batch: Batch) -> jm.TrainState:
    return state if batches.warm else trainer.cold(state, batch.points)
