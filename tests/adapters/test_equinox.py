"""Stacks of Equinox modules: values, gradients and state are those of `lax.scan` over the partitioned stack."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from helpers import networks as nets

import jaxmgrit as jm

eqx = pytest.importorskip("equinox", reason="equinox is not installed: pip install -e '.[adapters]'")
adapter = jm.adapters.equinox

DEPTH, WIDTH = 6, 4
H = 1.0 / DEPTH
U = 0.5 * jax.random.normal(jax.random.key(1), (8, WIDTH), jnp.float64)
KEY = jax.random.key(2)


class Block(eqx.Module):
    """For one sample, as is usual: batch norm over the batch's axis, dropout, and a function as a leaf."""

    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    activation: Callable

    def __init__(self, key, width=WIDTH):
        self.linear = eqx.nn.Linear(
            width, width, use_bias=False, key=key, dtype=jnp.float64
        )  # the norm takes a bias away
        self.norm = eqx.nn.BatchNorm(width, "batch", mode="batch", momentum=0.9, dtype=jnp.float64)
        self.dropout = eqx.nn.Dropout(0.3)
        self.activation = jnp.tanh

    def __call__(self, u, state, key):
        y, state = self.norm(self.linear(u), state)
        return self.dropout(self.activation(y), key=key), state


def call(block, u, *h_and_state, key):
    *h, state = h_and_state
    over_batch = jax.vmap(block, in_axes=(0, None, 0), out_axes=(0, None), axis_name="batch")
    increment, state = over_batch(u, state, jax.random.split(key, len(u)))
    return u + (h[0] if h else H) * increment, state


def make():
    return adapter.init_stack(eqx.nn.make_with_state(Block), DEPTH, jax.random.key(0))


def outcome(run):
    """Value, gradients and state after one step, of the stack run by `run(layers, state, u) -> (u, state)`."""
    layers, state = make()
    params, static = eqx.partition(layers, eqx.is_inexact_array)

    def loss(params, u):
        u, new = run(eqx.combine(params, static), state, u)
        return jnp.sum(jnp.sin(u)), (u, jax.tree.leaves(new))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, U)


def framework(layers, state, u):
    arrays, static = eqx.partition(layers, eqx.is_array)

    def body(u, x):
        own, state, key = x
        return call(eqx.combine(own, static), u, state, key=key)

    return jax.lax.scan(body, u, (arrays, state, jax.random.split(KEY, DEPTH)))


def ours(**options):
    def run(layers, state, u):
        f, xs = adapter.to_scan(layers, state=state, key=KEY, call=call)
        return jm.scan(f, u, xs, **options)

    return run


@pytest.mark.parametrize(
    "options",
    nets.slow_but(
        [dict(h=H, backend=nets.mesh(2))],
        [{}, dict(h=H, backend=nets.mesh(2)), dict(h=H, solver=jm.MGRIT(2, cycles=4)), dict(solver=jm.Newton(2))],
    ),
    ids=["default", "mesh", "multigrid", "newton"],
)
def test_values_gradients_and_statistics_are_those_of_the_scan(options):
    found, expected = outcome(ours(**options)), outcome(framework)
    assert nets.distance(found, expected) < 1e-12
    before = jax.tree.leaves(make()[1])
    assert any(jnp.any(x != y) for x, y in zip(before, expected[0][1][1], strict=True))


@pytest.mark.slow
def test_layers_that_change_nothing_are_propagated_dropout_included():
    layers, state = make()
    inference = eqx.nn.inference_mode(layers)

    def read(block, u, h, state, key):
        return u + h * jax.vmap(lambda u: block(u, state, key)[0])(u)

    def body(u, x):
        block, state, key = x
        return read(eqx.combine(block, static), u, H, state, key), None

    arrays, static = eqx.partition(inference, eqx.is_array)
    expected, _ = jax.lax.scan(body, U, (arrays, state, jax.random.split(KEY, DEPTH)))
    step, theta = adapter.to_propagate(inference, state=state, key=KEY, call=read)
    for options in ({}, dict(solver=jm.MGRIT(3, cycles=2))):
        assert nets.distance(jm.propagate(step, theta, U, h=H, **options), expected) < 1e-12

    step, theta = adapter.to_propagate(layers, state=state, key=KEY, call=call)
    with pytest.raises(ValueError, match=r"changes state that would be lost .*jm.scan and equinox.to_scan"):
        jm.propagate(step, theta, U, h=H)


def test_a_list_is_stacked_where_its_layers_are_alike():
    layers = [eqx.nn.MLP(WIDTH, WIDTH, 5, 1, key=key, dtype=jnp.float64) for key in jax.random.split(KEY, 3)]
    f, xs = adapter.to_scan(adapter.stack(layers), call=lambda layer, u: jax.vmap(layer)(u))
    expected = U
    for layer in layers:
        expected = jax.vmap(layer)(expected)
    assert nets.distance(jm.scan(f, U, xs)[0], expected) < 1e-12


def test_misuse_is_named():
    layers, state = make()
    linears = [eqx.nn.Linear(4, width, key=KEY) for width in (4, 5)]
    with pytest.raises(ValueError, match=r"layer 1 is unlike layer 0: .*\[5, 4\]"):
        adapter.stack(linears)
    with pytest.raises(ValueError, match=r"layer 1 is unlike layer 0: .*0\.2.*0\.1"):
        adapter.stack([eqx.nn.Dropout(0.1), eqx.nn.Dropout(0.2)])
    with pytest.raises(TypeError, match="the layers are a list.*stack"):
        adapter.to_scan(linears)
    with pytest.raises(ValueError, match=r"have state \(.norm.* not given; give state="):
        adapter.to_scan(layers)
    with pytest.raises(TypeError, match="is not an eqx.nn.State"):
        adapter.to_scan(layers, state={})
    f, xs = adapter.to_scan(layers, state=state, key=KEY, call=lambda block, u, state, key: u)
    with pytest.raises(ValueError, match=r"have state, but none is returned"):
        jm.scan(f, U, xs)
    # Without an adapter, functions among the leaves are named as what they are.
    mlps = adapter.init_stack(lambda key: eqx.nn.MLP(4, 4, 5, 1, activation=jax.nn.relu, key=key), 3, KEY)
    with pytest.raises(TypeError, match=r"activation.*functions are not parameters.*equinox.partition"):
        jm.propagate(lambda layer, u, h: u, mlps, U, h=H)
