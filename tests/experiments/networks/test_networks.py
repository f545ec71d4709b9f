"""The network: initial values, layers and penalties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmgrit as jm
from experiments.config.schema import Network, Penalty
from experiments.errors import ConfigError
from experiments.networks import kinds
from experiments.networks import residual as networks


def initial(kind, layers=32):
    return networks.initialise(
        Network(layers=layers, initialisation=kind), shape=(2,), classes=5, seed=3, dtype="float32"
    )


def network(**keys):
    return Network(layers=3, **{"kind": "convolutional", "opening": "replicate", "width": 4, **keys})


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


@pytest.mark.parametrize("kind", ["dense", "convolutional"])
def test_smooth_initial_values_depend_on_the_kind_of_layer(kind):
    made = networks.initialise(
        network(kind=kind, opening="dense", initialisation="interpolated"), (6, 5, 2), 10, 0, "float64"
    )
    shapes = jax.tree.map(lambda leaf: leaf.shape, made)
    kernel, inputs, final = ((3, 3), 2, 6 * 5 * 4) if kind == "convolutional" else ((), 60, 4)
    assert shapes.opening == {"w": (inputs, 4), "b": (4,)}
    assert shapes.layers == {"w": (3, *kernel, 4, 4), "b": (3, 4)}
    assert shapes.closing == {"w": (final, 10), "b": (10,)}
    many = networks.initialise(network(width=64, initialisation="independent"), (6, 5, 2), 10, 0, "float64")
    assert float(many.layers["w"].std()) == pytest.approx(1 / np.sqrt(9 * 64), rel=0.01)  # 1/sqrt(inputs of a pixel)


def test_convolution_is_xlas_own():
    u = jax.random.normal(jax.random.key(0), (2, 6, 5, 3))
    theta = {"w": jax.random.normal(jax.random.key(1), (3, 3, 3, 3)), "b": jnp.asarray([1.0, -2.0, 0.5])}

    def expected(theta, u):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(u, theta["w"], (1, 1), "SAME", dimension_numbers=numbers) + theta["b"]

    def loss(f):
        return lambda theta, u: jnp.sum(jnp.sin(f(theta, u)))

    np.testing.assert_allclose(networks.convolution(theta, u), expected(theta, u), atol=1e-5)
    found, wanted = (jax.grad(loss(f), argnums=(0, 1))(theta, u) for f in (networks.convolution, expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, wanted)


def test_openings():
    image = jnp.arange(2 * 3 * 3.0).reshape(2, 3, 3, 1)
    replicated = networks.opening(network())({}, image)
    padded = networks.opening(network(opening="zero_padding"))({}, image)
    np.testing.assert_array_equal(replicated, np.repeat(image, 4, axis=3))
    np.testing.assert_array_equal(padded, np.concatenate([image, np.zeros((2, 3, 3, 3))], axis=3))
    row = networks.opening(network(kind="dense", opening="zero_padding", width=11))({}, image)
    np.testing.assert_array_equal(row, np.pad(image.reshape(2, 9), ((0, 0), (0, 2))))
    x = jnp.asarray([[1.0, -1.0]])
    theta = {"w": jnp.eye(2), "b": jnp.zeros(2)}
    for name, f in networks.ACTIVATIONS.items():
        opened = networks.opening(network(kind="dense", opening="dense", width=2, activation=name))(theta, x)
        np.testing.assert_array_equal(opened, f(x))


@pytest.mark.slow
def test_both_layouts_of_a_state_are_the_same_network():
    own = network(kind="dense", opening="dense")
    params = networks.initialise(own, (6,), 3, 0, "float32")
    x, y = jax.random.normal(jax.random.key(0), (5, 6)), jnp.arange(5) % 3

    def loss(network, params):
        u = networks.opening(network)(params.opening, x)
        for w, b in zip(params.layers["w"], params.layers["b"], strict=True):
            u = networks.residual_step(network)({"w": w, "b": b}, u, 0.5)
        return kinds.Classification(networks.logits)(params.closing, u, y)[0]

    other = own.model_copy(update={"layout": "width_first"})
    assert networks.opening(other)(params.opening, x).values.shape == (4, 5)
    found, expected = (jax.value_and_grad(loss, argnums=1)(one, params) for one in (other, own))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


@pytest.mark.parametrize("activation", sorted(networks.ACTIVATIONS))
@pytest.mark.parametrize("kind", ["dense", "convolutional"])
def test_residual_step_with_vector_and_scalar_bias(kind, activation):
    shape = (3, 4) if kind == "dense" else (3, 5, 5, 4)
    u = jax.random.normal(jax.random.key(0), shape)
    step = networks.residual_step(network(kind=kind, activation=activation))
    made = {
        bias: networks.initialise(network(kind=kind, opening="zero_padding", bias=bias), shape[1:], 2, 0, "float32")
        for bias in ("vector", "scalar")
    }
    assert made["scalar"].layers["b"].shape == (3, 1)
    assert made["vector"].layers["b"].shape == (3, 4)
    theta = {"w": made["vector"].layers["w"][0], "b": jnp.full(4, 0.3)}
    expected = u + 0.5 * networks.ACTIVATIONS[activation](networks.LINEAR[kind](theta, u))
    np.testing.assert_allclose(step(theta, u, 0.5), expected, rtol=1e-6)
    np.testing.assert_allclose(step({**theta, "b": jnp.full(1, 0.3)}, u, 0.5), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("keys", "shape", "message"),
    [
        (
            {},
            (7,),
            r"network\.kind = 'convolutional': expected images, but an input has 7 features\. Use network\.kind",
        ),
        ({"width": 3}, (5, 5, 2), r"network\.width = 3: expected a multiple of the 2 channel\(s\).*--network\.width 2"),
        (
            {"kind": "dense", "opening": "zero_padding"},
            (7,),
            r"network\.width = 4: expected at least the 7 features .*--network\.width 7 or more, or network\.opening",
        ),
    ],
)
def test_networks_that_do_not_fit_the_inputs(keys, shape, message):
    with pytest.raises(ConfigError, match=message):
        networks.initialise(network(**keys), shape, 2, 0, "float32")


def test_smooth_relu_is_continuous_with_a_continuous_slope():
    for corner in (-0.1, 0.1):
        for f in (networks.smooth_relu, jax.grad(networks.smooth_relu)):
            assert f(jnp.asarray(corner - 1e-4)) == pytest.approx(float(f(jnp.asarray(corner + 1e-4))), abs=2e-3)
    assert networks.smooth_relu(jnp.asarray(2.0)) == 2.0


def test_classification_of_certain_and_uniform_logits():
    theta = {"w": 100 * jnp.eye(5), "b": jnp.zeros(5)}
    y = jnp.asarray([0, 1, 2, 4])
    loss, aux = kinds.Classification(networks.logits)(theta, jnp.eye(5)[y], y)
    assert (float(loss), float(aux["accuracy"])) == (pytest.approx(0, abs=1e-6), 1.0)
    loss, aux = kinds.Classification(networks.logits)(theta, jnp.zeros((4, 5)), y)
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
