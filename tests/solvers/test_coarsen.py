"""Coarse parameters and coarse steps: what they are, and of which order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks as nets

import jaxmgrit as jm

THETA = {"w": jnp.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]]), "kind": jnp.asarray([7, 8, 9])}


def test_injection_takes_the_first_layer():
    found = jm.injection(THETA)
    np.testing.assert_array_equal(found["w"], [1.0, 2.0])
    assert found["kind"] == 7


def test_average_takes_the_mean_and_the_first_of_what_has_no_mean():
    keys = jax.random.split(jax.random.key(0), 3)
    found = jm.average({**THETA, "key": keys})
    np.testing.assert_array_equal(found["w"], [3.0, 5.0])
    assert found["kind"] == 7
    assert found["key"] == keys[0]


def test_the_same_step_is_one_step_of_the_summed_size():
    theta = jax.tree.map(lambda x: x[0], nets.rough(1))
    found = jm.same_step(nets.tanh_step, theta, nets.state(), 0.4, 4)
    np.testing.assert_array_equal(found, nets.tanh_step(theta, nets.state(), 0.4))


@pytest.mark.parametrize("step, order", [(jm.same_step, 2), (jm.midpoint, 3)])
@pytest.mark.parametrize("m", [2, 4, 16])
def test_a_coarse_step_differs_from_m_euler_steps_by_its_order(step, order, m):
    theta, u = jax.tree.map(lambda x: x[0], nets.rough(1)), nets.state()

    def error(h):
        fine = u
        for _ in range(m):
            fine = nets.tanh_step(theta, fine, h / m)
        return jnp.max(jnp.abs(step(nets.tanh_step, theta, u, h, m) - fine))

    observed = np.log2(error(0.02) / error(0.01))
    assert observed == pytest.approx(order, abs=0.1)


def test_the_midpoint_of_one_layer_is_that_layer():
    theta, u = jax.tree.map(lambda x: x[0], nets.rough(1)), nets.state()
    found = jm.midpoint(nets.tanh_step, theta, u, 0.3, 1)
    np.testing.assert_allclose(found, nets.tanh_step(theta, u, 0.3), rtol=1e-15)
