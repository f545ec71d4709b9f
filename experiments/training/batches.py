"""What each iteration trains on: a pure function of the config's seed and the iteration's number, so a run can go on.

Mini-batches go through all training points once an epoch, in an order drawn anew for each from (seed, epoch); what does
not fill a batch at the end of an epoch is left out of it. Augmentation is drawn from (seed, iteration).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.problems import Data
from experiments.problems.data import cast

ORDER, AUGMENTATION = 1, 2  # tell the two random streams of a seed apart


class Batch(NamedTuple):
    """What an iteration trains on.

    Attributes:
        points: (x, y), inputs and labels.
        samples: Which of the training points they are, (batch,); None for all of them, in order.
    """

    points: tuple[jax.Array, jax.Array]
    samples: jax.Array | None = None


class Batches:
    """The batches of a training.

    Attributes:
        warm: Whether warm values are kept from one iteration to the next.

    Raises:
        ConfigError: A batch is larger than the data.
    """

    def __init__(self, config: Config, data: Data) -> None:
        points, size = len(data.train.y), config.training.batch_size
        if size is not None and size > points:
            raise ConfigError(
                f"training.batch_size = {size}: expected at most the {points} training points. "
                "Take a smaller batch or more points, or leave it out for all of them."
            )
        self.warm = config.training.start == "warm"
        self._size, self._seed, self._dtype = size, config.seed, config.dtype
        self._data, self._augment = data.train, data.augment
        self._order = -1, np.arange(points)
        # Where all iterations have the same batch, it goes to the device once.
        self._all = None if size or data.augment else Batch(self._arrays(slice(None)))

    def first(self) -> tuple[jax.Array, jax.Array]:
        """What to initialise a training with: all points whose warm values are kept, else a batch."""
        return self._arrays(slice(None)) if self.warm else self.at(0).points

    def at(self, iteration: int) -> Batch:
        """The batch of an iteration."""
        if self._all is not None:
            return self._all
        if self._size is None:
            return Batch(self._arrays(slice(None), iteration))
        epoch, place = divmod(iteration, len(self._data.y) // self._size)
        if self._order[0] != epoch:
            random = np.random.default_rng((self._seed, ORDER, epoch))
            self._order = epoch, random.permutation(len(self._data.y))
        samples = self._order[1][place * self._size : (place + 1) * self._size]
        return Batch(self._arrays(samples, iteration), jnp.asarray(samples) if self.warm else None)

    def _arrays(self, samples: np.ndarray | slice, iteration: int | None = None) -> tuple[jax.Array, jax.Array]:
        """Some training points; augmented if they are for an iteration."""
        x, y = self._data.x[samples], self._data.y[samples]
        if self._augment is not None and iteration is not None:
            x = self._augment(x, np.random.default_rng((self._seed, AUGMENTATION, iteration)))
        return jnp.asarray(cast(x, self._dtype)), jnp.asarray(cast(y, self._dtype))
