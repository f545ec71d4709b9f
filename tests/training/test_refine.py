"""Refinement in depth: exact for what its order promises, and a start from which training goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks as nets

import jaxmgrit as jm


def linear(layers):
    """Parameters that are linear in depth, sampled at the middle of each step."""
    t = (jnp.arange(layers, dtype=float) + 0.5) / layers
    return {"w": 1.0 - 2.0 * t[:, None] * jnp.ones((1, 3)), "b": 3.0 * t}


def params(theta):
    return jm.Params({"w": jnp.ones(2)}, theta, {"w": jnp.zeros(2)})


@pytest.mark.parametrize("factor", [2, 3])
def test_linear_is_exact_for_parameters_linear_in_depth(factor):
    refined = jm.refine(params(linear(5)), factor)
    assert nets.distance(refined, params(linear(5 * factor))) < 1e-15


def test_constant_repeats_every_layer_and_its_means_are_the_layers():
    theta = nets.rough(5)
    refined = jm.refine(params(theta), 3, "constant")
    assert nets.distance(jax.tree.map(lambda x: x[1::3], refined.layers), theta) == 0.0
    averages = jax.tree.map(lambda x: x.reshape(5, 3, *x.shape[1:]).mean(axis=1), refined.layers)
    assert nets.distance(averages, theta) < 1e-15


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["constant", "linear"])
def test_the_refined_network_computes_nearly_the_same_and_ever_more_so(kind):
    errors = []
    for layers in (32, 64):
        problem, start, batch = nets.classification(layers, initial=nets.smooth)
        deeper = nets.classification(4 * layers)[0]
        actual = deeper.evaluate(jm.refine(start, 4, kind), batch)[0]
        errors.append(abs(float(actual - problem.evaluate(start, batch)[0])))
    assert errors[0] < 0.2
    assert errors[1] < 0.6 * errors[0]


def test_one_layer_and_leaves_that_are_no_numbers_are_repeated():
    theta = {
        "w": jnp.ones((1, 2), jnp.float32),
        "kind": jnp.asarray([7]),
        "key": jax.random.split(jax.random.key(0), 1),
    }
    refined = jm.refine(params(theta), 4).layers
    assert refined["w"].shape == (4, 2) and refined["w"].dtype == jnp.float32
    np.testing.assert_array_equal(refined["kind"], 7)
    assert (refined["key"] == theta["key"]).all()


@pytest.mark.parametrize(
    "args, kind, message",
    [
        ((params(linear(2)), 0), ValueError, "refine: factor=0 is too small"),
        ((params(linear(2)), 2.0), TypeError, r"refine: factor=2\.0 is not an integer"),
        ((params(linear(2)), 2, "cubic"), ValueError, "refine: kind='cubic' is unknown"),
        ((linear(2), 2), TypeError, "params is a dict; give jm.Params"),
    ],
)
def test_what_cannot_be_refined_is_refused(args, kind, message):
    with pytest.raises(kind, match=message):
        jm.refine(*args)
