"""Penalties that are sums over layers: value and gradient, on one device and on several."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks as nets

import jaxmgrit as jm
from jaxmgrit._pytree import fit

LAYERS, H = 13, 0.25
WEIGHTS = dict(gamma_tik=0.3, gamma_class=0.7, gamma_ddt=0.05)


def by_formula(params, gamma_tik, gamma_class, gamma_ddt, scale=1.0):
    """Section 1 of the method, word by word, in NumPy."""

    def squares(tree):
        return sum(float(np.sum(np.asarray(x) ** 2)) for x in jax.tree.leaves(tree))

    value = gamma_tik / 2 * (squares(params.opening) + scale * squares(params.layers))
    value += gamma_class / 2 * squares(params.closing)
    for n in range(1, LAYERS):
        slope = jax.tree.map(lambda x, n=n: (x[n] - x[n - 1]) / H, params.layers)
        value += gamma_ddt / 2 * scale * squares(slope)
    return value


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kept", [(), ("gamma_tik",), ("gamma_class", "gamma_ddt")])
def test_the_published_penalties_are_their_formula(kept, scaled):
    params = nets.classification(LAYERS)[1]
    weights = {name: value if name in kept else 0.0 for name, value in WEIGHTS.items()}
    actual = jm.published_penalty(H, **weights, mesh_independent=scaled)(params)
    assert float(actual) == pytest.approx(by_formula(params, **weights, scale=H if scaled else 1.0), rel=1e-12)


def test_scaled_with_the_step_size_they_penalise_a_theta_of_t_alike_at_any_depth():
    values = []
    for layers in (64, 1024):
        params = nets.classification(layers, initial=nets.smooth)[1]
        penalty = jm.published_penalty(2.0 / layers, gamma_tik=1.0, gamma_ddt=0.1, mesh_independent=True)
        values.append(float(penalty(params)))
    np.testing.assert_allclose(values, values[-1], rtol=0.05)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("value", [-1e-3, float("nan"), "1"])
def test_weights_below_zero_are_refused(name, value):
    with pytest.raises(ValueError, match=f"published_penalty: {name}="):
        jm.published_penalty(H, **{name: value})


@pytest.mark.parametrize("h", [0.0, -0.1, None])
def test_a_step_size_that_is_not_positive_is_refused(h):
    with pytest.raises(ValueError, match="published_penalty: h="):
        jm.published_penalty(h, gamma_ddt=1.0)


def test_terms_that_are_no_functions_are_refused():
    with pytest.raises(TypeError, match=r"LayerwisePenalty: neighbours=1\.0 is not a function"):
        jm.LayerwisePenalty(neighbours=1.0)


def roots(theta):
    """A term whose derivative at padding of zeros would not be finite."""
    return jnp.sum(jnp.sqrt(jnp.abs(theta["w"]))) * (theta["kind"] + 1).astype(float)


def jumps(before, after):
    return jnp.sum((after["w"] * before["b"][None] - before["w"]) ** 2) * (before["kind"] + 1).astype(float)


def ends(opening, closing):
    return jnp.sum(opening["w"]) * jnp.sum(closing["w"] ** 2)


TERMS = {
    "layer": dict(layer=roots),
    "neighbours": dict(neighbours=jumps),
    "both": dict(layer=roots, neighbours=jumps),
    "none": dict(ends=ends),
}


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("devices", [1, 8])
def test_value_and_gradient_by_layers_are_those_of_the_whole(name, devices):
    # 67 layers in intervals of 4 on 8 devices are 96 slots: whole intervals of padding.
    layers, slots = 67, 96
    theta = {**nets.smooth(layers), "kind": jnp.arange(layers) % 3}
    penalty, backend = jm.LayerwisePenalty(**TERMS[name]), nets.mesh(devices)
    laid_out = backend.scatter(fit(theta, slots, False))
    value, gradient = penalty.of_layers_with_gradient(laid_out, layers, backend)

    def whole(floats):
        ends = {"w": jnp.zeros(1)}
        return penalty(jm.Params(ends, {**floats, "kind": theta["kind"]}, ends))

    floats = {"w": theta["w"], "b": theta["b"]}
    expected, expected_gradient = jax.value_and_grad(whole)(floats)
    assert float(value) == pytest.approx(float(expected), rel=1e-13)
    assert float(penalty.of_layers(laid_out, layers, backend)) == pytest.approx(float(expected), rel=1e-13)
    assert nets.distance({k: gradient[k][:layers] for k in floats}, expected_gradient) < 1e-13
    assert all((gradient[k][layers:] == 0).all() for k in floats)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_an_iteration_over_devices_is_that_with_a_general_function(devices):
    layers = 67
    problem, params, batch = nets.classification(layers)
    params = params._replace(layers={**params.layers, "kind": jnp.arange(layers) % 3})
    penalty = jm.LayerwisePenalty(roots, jumps, ends)

    def one_iteration(penalty, devices):
        own = dataclasses.replace(problem, penalty=penalty)
        trainer = jm.OneShot(own, optax.sgd(1.0), jm.MGRIT(4), jm.MGRIT(4), backend=nets.mesh(devices))
        state, info = jax.jit(trainer.step)(trainer.init(params, batch), batch)
        return trainer.params(state), info.objective

    actual, value = one_iteration(penalty, devices)
    expected, expected_value = one_iteration(lambda p: penalty(p), 1)
    assert nets.distance(actual, expected) < 1e-12
    assert float(value) == pytest.approx(float(expected_value), rel=1e-13)
