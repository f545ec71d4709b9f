"""The network: initial values, layers and penalties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmgrit as jm
from experiments import networks
from experiments.schema import Network, Penalty


def initial(kind, layers=32):
    return networks.initialise(
        Network(layers=layers, initialisation=kind), inputs=2, classes=5, seed=3, dtype="float32"
    )


@pytest.mark.parametrize("kind", ["equal", "interpolated", "independent"])
def test_shapes_and_seed(kind):
    params = initial(kind)
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    assert shapes.opening == {"w": (2, 8), "b": (8,)}
    assert shapes.layers == {"w": (32, 8, 8), "b": (32, 8)}
    assert shapes.closing == {"w": (8, 5), "b": (5,)}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    np.testing.assert_array_equal(params.layers["w"], initial(kind).layers["w"])


def test_smooth_initialisations_are_smooth_in_depth():
    def jump(kind, layers):
        return float(jnp.abs(jnp.diff(initial(kind, layers).layers["w"], axis=0)).max())

    assert jump("equal", 32) == 0
    assert jump("interpolated", 32) > 0
    assert jump("interpolated", 64) == pytest.approx(jump("interpolated", 32) / 2, rel=1e-4)
    assert jump("independent", 32) > 10 * jump("interpolated", 32)


def test_smooth_relu_is_continuous_with_a_continuous_slope():
    for corner in (-0.1, 0.1):
        for f in (networks.smooth_relu, jax.grad(networks.smooth_relu)):
            assert f(jnp.asarray(corner - 1e-4)) == pytest.approx(float(f(jnp.asarray(corner + 1e-4))), abs=2e-3)
    assert networks.smooth_relu(jnp.asarray(2.0)) == 2.0


def test_classification_of_certain_and_uniform_logits():
    theta = {"w": 100 * jnp.eye(5), "b": jnp.zeros(5)}
    y = jnp.asarray([0, 1, 2, 4])
    loss, aux = networks.classification(theta, jnp.eye(5)[y], y)
    assert (float(loss), float(aux["accuracy"])) == (pytest.approx(0, abs=1e-6), 1.0)
    loss, aux = networks.classification(theta, jnp.zeros((4, 5)), y)
    assert (float(loss), float(aux["accuracy"])) == (pytest.approx(np.log(5), rel=1e-6), 0.25)


def test_penalties_of_a_case_done_by_hand():
    params = jm.Params(
        opening={"w": jnp.ones((2, 2)), "b": jnp.ones(2)},
        layers={"w": jnp.asarray([1.0, 2.0, 4.0]).reshape(3, 1, 1), "b": jnp.zeros((3, 1))},
        closing={"w": jnp.full((2, 2), 3.0), "b": jnp.zeros(2)},
    )
    value = networks.penalty(Penalty(gamma_tik=2.0, gamma_class=4.0, gamma_ddt=6.0), h=0.5)
    # opening 6, layers 1 + 4 + 16, closing 36, slopes (1/h)^2 + (2/h)^2 = 20
    assert float(value(params)) == 2 / 2 * (6 + 21) + 4 / 2 * 36 + 6 / 2 * 20
    assert networks.penalty(Penalty(), h=0.5) is None
