"""Modules in one-shot training: steps are those of the framework's own network, dropout is by the step's key."""

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import networks as nets

import jaxmgrit as jm

nnx = pytest.importorskip("flax.nnx", reason="flax is not installed: pip install -e '.[adapters]'")
linen = pytest.importorskip("flax.linen", reason="flax is not installed: pip install -e '.[adapters]'")
eqx = pytest.importorskip("equinox", reason="equinox is not installed: pip install -e '.[adapters]'")

DEPTH, WIDTH = 6, 4
H = 1.0 / DEPTH
DOUBLE = dict(dtype=jnp.float64, param_dtype=jnp.float64)
X = jax.random.normal(jax.random.key(1), (8, 2), jnp.float64)
Y = jnp.sum(X**2, axis=1, keepdims=True)
KEYS = jax.random.split(jax.random.key(0), 3)


def square(closing, u, y):
    return jnp.mean((closing(u) - y) ** 2), None


class Block(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs, **DOUBLE)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, u):
        return jnp.tanh(self.dropout(self.linear(u)))


class LinenBlock(linen.Module):
    training: bool = True

    @linen.compact
    def __call__(self, u):
        dense = linen.Dense(WIDTH, **DOUBLE)(u)
        return jnp.tanh(linen.Dropout(0.3, deterministic=not self.training)(dense))


class EquinoxBlock(eqx.Module):
    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        self.linear = eqx.nn.Linear(WIDTH, WIDTH, key=key, dtype=jnp.float64)
        self.dropout = eqx.nn.Dropout(0.3)

    def __call__(self, u, key):
        return jnp.tanh(self.dropout(jax.vmap(self.linear)(u), key=key))


class Ends(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, x):
        return jax.vmap(self.linear)(x)


def by_nnx():
    """(problem, params), and the framework's own loss of params without dropout."""
    rngs = nnx.Rngs(0)
    parts = (
        nnx.Linear(2, WIDTH, rngs=rngs, **DOUBLE),
        jm.adapters.nnx.init_stack(lambda rngs: Block(rngs=rngs), DEPTH, rngs),
        nnx.Linear(WIDTH, 1, rngs=rngs, **DOUBLE),
    )

    def loss(params):
        opening, layers, closing = (nnx.clone(part) for part in parts)
        jm.adapters.nnx.put_back(params, opening, layers, closing)
        layers.eval()
        scan = nnx.scan(lambda layer, u: u + H * layer(u), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        return square(closing, scan(layers, opening(X)), Y)[0]

    made = jm.adapters.nnx.to_one_shot(*parts, square, h=H, call=jm.adapters.residual, keys=True)
    return *made, loss


def by_linen():
    opening, closing = linen.Dense(WIDTH, **DOUBLE), linen.Dense(1, **DOUBLE)
    resting, u = LinenBlock(training=False), jnp.ones((8, WIDTH))
    variables = jm.adapters.linen.init_stack(resting, DEPTH, KEYS[1], u)

    def loss(params):
        body = lambda u, own: (u + H * resting.apply(own, u), None)  # noqa: E731
        u, _ = jax.lax.scan(body, opening.apply(params.opening, X), params.layers)
        return square(closing.bind(params.closing), u, Y)[0]

    ends = (opening, opening.init(KEYS[0], X)), (closing, closing.init(KEYS[2], u))
    layers = LinenBlock(), variables
    options = dict(h=H, call=jm.adapters.residual, stream="dropout", inference=resting)
    return *jm.adapters.linen.to_one_shot(ends[0], layers, ends[1], square, **options), loss


def by_equinox():
    parts = (
        Ends(eqx.nn.Linear(2, WIDTH, key=KEYS[0], dtype=jnp.float64)),
        jm.adapters.equinox.init_stack(EquinoxBlock, DEPTH, KEYS[1]),
        Ends(eqx.nn.Linear(WIDTH, 1, key=KEYS[2], dtype=jnp.float64)),
    )

    def loss(params):
        opening, layers, closing = jm.adapters.equinox.put_back(params, *parts)
        arrays, static = eqx.partition(eqx.nn.inference_mode(layers), eqx.is_array)
        body = lambda u, own: (u + H * eqx.combine(own, static)(u, None), None)  # noqa: E731
        return square(closing, jax.lax.scan(body, opening(X), arrays)[0], Y)[0]

    made = jm.adapters.equinox.to_one_shot(*parts, square, h=H, call=jm.adapters.residual, keys=True)
    return *made, loss


@pytest.mark.slow
@pytest.mark.parametrize("make", [by_nnx, by_linen, by_equinox])
def test_steps_are_those_of_the_frameworks_network_and_dropout_is_by_the_key(make):
    problem, params, loss = make()
    cycles = jm.MGRIT(2, levels=2, cycles=4)
    trainer = jm.OneShot(problem, optax.sgd(0.1), solver=cycles, adjoint=cycles, start="cold")
    state = trainer.init(params, (X, Y))
    step = jax.jit(trainer.step)
    after, info = step(state, (X, Y))
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert abs(info.loss - value) < 1e-12
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    assert nets.distance(jax.tree.leaves(trainer.params(after)), jax.tree.leaves(expected)) < 1e-12

    random = jax.jit(lambda key: trainer.step(state, (X, Y), key=key)[1].loss)
    first, again, other = (random(jax.random.key(n)) for n in (0, 0, 1))
    assert first == again and abs(first - other) > 1e-6 and abs(first - value) > 1e-6


def test_state_has_no_place_in_one_shot_training():
    rngs, state_refused = nnx.Rngs(0), "has no place|no place for"
    linear, layers = nnx.Linear(4, 4, rngs=rngs), jm.adapters.nnx.init_stack(lambda rngs: Block(rngs=rngs), 2, rngs)
    norm = jm.adapters.nnx.init_stack(lambda rngs: nnx.BatchNorm(4, rngs=rngs), 2, rngs)
    with pytest.raises(ValueError, match=rf"to_one_shot: layers.*\['mean'\].*{state_refused}"):
        jm.adapters.nnx.to_one_shot(linear, norm, linear, square, h=H)
    problem, params = jm.adapters.nnx.to_one_shot(linear, layers, linear, square, h=H, call=jm.adapters.residual)
    with pytest.raises(ValueError, match=r"\['dropout'\].*give keys=True"):
        problem.evaluate(params, (jnp.ones((8, 4)), jnp.ones((8, 4))))

    norm, u = linen.BatchNorm(use_running_average=False), jnp.ones((8, 4))
    dense = linen.Dense(4), linen.Dense(4).init(KEYS[0], u)
    with pytest.raises(ValueError, match=rf"to_one_shot: layers.*\['batch_stats'\].*{state_refused}"):
        variables = jm.adapters.linen.init_stack(norm, 2, KEYS[0], u)
        jm.adapters.linen.to_one_shot(dense, (norm, variables), dense, square, h=H)

    make = eqx.nn.make_with_state(lambda key: eqx.nn.BatchNorm(4, "batch", mode="batch"))
    norm, _ = jm.adapters.equinox.init_stack(make, 2, KEYS[0])
    linear = eqx.nn.Linear(4, 4, key=KEYS[0])
    with pytest.raises(ValueError, match=f"to_one_shot: the layers have state.*{state_refused}"):
        jm.adapters.equinox.to_one_shot(linear, norm, linear, square, h=H)
