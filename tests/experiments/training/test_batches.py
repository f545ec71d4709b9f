"""Mini-batches: a pure function of seed and iteration, every point once an epoch; and trainings with them."""

import jax
import numpy as np
import pytest

from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.problems import Data, DataSet, mnist
from experiments.processes.interruption import Interruption
from experiments.training.batches import Batches
from experiments.training.loop import Loop
from experiments.training.records import Silent

POINTS = 23


def config(**training):
    return Config.model_validate(
        {
            "problem": {"name": "level_sets"},
            "training": training,
            "network": {"layers": 8, "width": 3},
            "solver": {"coarsening_factor": 2, "cycles": 1},
            "dtype": "float64" if jax.config.jax_enable_x64 else "float32",
            "iterations": 6,
            "seed": 5,
        }
    )


def data(augment=None):
    x, y = np.arange(2.0 * POINTS).reshape(POINTS, 2) / POINTS, np.arange(POINTS, dtype=np.int32) % 3
    return Data(DataSet(x, y), DataSet(x[:4], y[:4]), ("a", "b", "c"), "", "", augment=augment)


def test_every_point_once_an_epoch_in_another_order_each_time():
    found = Batches(config(batch_size=5), data())
    epochs = [np.concatenate([found.at(4 * epoch + i).samples for i in range(4)]) for epoch in range(3)]
    for samples in epochs:
        assert len(set(samples.tolist())) == 20
        assert samples.max() < POINTS
    assert not np.array_equal(epochs[0], epochs[1])
    assert len(set(np.concatenate(epochs).tolist())) == POINTS  # what is left out differs


def test_a_batch_depends_on_seed_and_iteration_alone():
    whole = data(augment=lambda x, random: x + random.normal(size=x.shape))
    there = Batches(config(batch_size=5), whole)
    expected = [there.at(i) for i in range(9)]
    for i in (8, 3, 4, 0):
        again = Batches(config(batch_size=5), whole).at(i)
        jax.tree.map(np.testing.assert_array_equal, again, expected[i])
        x, y = expected[i].points
        np.testing.assert_array_equal(y, whole.train.y[expected[i].samples])
        assert not np.allclose(x, whole.train.x[expected[i].samples])
    other = Batches(config(batch_size=5).model_copy(update={"seed": 6}), whole).at(0)
    assert not np.array_equal(other.samples, expected[0].samples)


def test_the_full_batch_is_made_once_and_augmented_every_time():
    fixed = Batches(config(), data())
    assert fixed.at(0) is fixed.at(1)
    assert fixed.at(0).samples is None
    np.testing.assert_allclose(fixed.at(0).points[0], data().train.x, rtol=1e-6)
    moving = Batches(config(), data(augment=lambda x, random: x + random.normal()))
    assert not np.allclose(moving.at(0).points[0], moving.at(1).points[0])


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ConfigError, match=r"training\.batch_size = 24: expected at most the 23 training points\. Take"):
        Batches(config(batch_size=24), data())


class Rows(Silent, list):
    """The metrics of a training."""

    def row(self, row):
        self.append(row)


@pytest.mark.parametrize("start", ["warm", pytest.param("cold", marks=pytest.mark.slow)])
def test_training_with_mini_batches_of_all_points_is_training_on_the_full_batch(start):
    """One mini-batch of all points, in random order, warm values by sample: the fixed batch up to rounding."""
    results = []
    for size in (None, POINTS):
        settings = config(batch_size=size, start=start)
        loop, rows = Loop(settings, data()), Rows()
        loop.run(rows, Interruption(loop.trainer.backend))
        results.append([row["grad_norm"] for row in rows])
    tolerance = 1e-9 if jax.config.jax_enable_x64 else 1e-4
    np.testing.assert_allclose(results[1], results[0], rtol=tolerance)


def test_shifted_images_are_moved_whole_and_by_every_amount():
    images = mnist.scaled(np.zeros((400, 28, 28)))
    images[:, 10:12, 14] = 5.0
    moved = mnist.shifted(images, np.random.default_rng(0), by=2)
    assert moved.shape == images.shape
    places = {tuple(map(int, np.argwhere(image == 5.0)[0, :2])) for image in moved}
    assert places == {(row, column) for row in range(8, 13) for column in range(12, 17)}
    assert (np.sort(moved.ravel()) == np.sort(images.ravel())).all()
