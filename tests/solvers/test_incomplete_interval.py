"""The coarse layer of an incomplete interval is made of its own layers, not of what fills it up."""

import jax.numpy as jnp
import numpy as np

import jaxmgrit as jm
from jaxmgrit.solvers.mgrit.grids import coarse_blocks
from jaxmgrit.system.step import Slot


def test_the_padding_of_an_incomplete_interval_is_no_part_of_its_coarse_layer():
    solver = jm.MGRIT(4, levels=2, coarse_params=jm.average)
    levels = solver.hierarchy(6, ragged=True)
    # Layers 4 and 5 in the second interval, and padding that would spoil the mean if it were taken in.
    block = Slot(
        jnp.asarray([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 1e6, 1e6]]), jnp.asarray([[0.1] * 4, [0.1, 0.1, 9.0, 9.0]])
    )
    (coarse,), _ = coarse_blocks(block, levels, solver, jm.Local())
    theta, h = np.ravel(coarse.theta), np.ravel(coarse.h)
    np.testing.assert_allclose(theta[0], 1.5)
    assert 4.0 <= theta[1] <= 5.0
    np.testing.assert_allclose(h, [0.4, 0.2])
