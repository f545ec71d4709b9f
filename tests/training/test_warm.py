"""Warm values by sample."""

import jax.numpy as jnp
import numpy as np

from jaxmgrit.training.warm import put, take


def test_samples_that_do_not_exist_give_nan_and_take_nothing():
    warm = jnp.arange(12.0).reshape(2, 3, 2)
    taken = take(warm, jnp.asarray([2, 3, -1]))
    np.testing.assert_array_equal(taken[:, 0], warm[:, 2])
    assert np.isnan(taken[:, 1:]).all()
    kept = put(warm, jnp.asarray([3, -1]), jnp.zeros((2, 2, 2)))
    np.testing.assert_array_equal(kept, warm)
