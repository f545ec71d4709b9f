"""Stacks of Flax linen modules: values, gradients and state are those of `linen.scan` over the same stack."""

import jax
import jax.numpy as jnp
import pytest
from helpers import networks as nets

import jaxmgrit as jm

linen = pytest.importorskip("flax.linen", reason="flax is not installed: pip install -e '.[adapters]'")
adapter = jm.adapters.linen

DEPTH, WIDTH = 6, 4
H = 1.0 / DEPTH
DOUBLE = dict(dtype=jnp.float64, param_dtype=jnp.float64)
U = 0.5 * jax.random.normal(jax.random.key(1), (8, WIDTH), jnp.float64)
KEY = jax.random.key(2)


class Block(linen.Module):
    """Batch norm and dropout."""

    training: bool = True
    dropout: float = 0.3

    @linen.compact
    def __call__(self, u, h=H):
        y = linen.BatchNorm(use_running_average=not self.training, momentum=0.9, **DOUBLE)(
            linen.Dense(WIDTH, use_bias=False, **DOUBLE)(u)  # the norm takes a bias away
        )
        return u + h * linen.Dropout(self.dropout, deterministic=not self.training)(jnp.tanh(y))


def variables():
    """Of a stack, with statistics in double precision, which Flax makes in single."""
    return jax.tree.map(nets.in_double, adapter.init_stack(Block(training=False), DEPTH, jax.random.key(0), U))


def outcome(run):
    """Value, gradients and the statistics after one step, of the stack run by `run(variables, u) -> (u, changed)`."""
    start = variables()

    def loss(params, u):
        u, changed = run(start | {"params": params}, u)
        return jnp.sum(jnp.sin(u)), (u, changed)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(start["params"], U)


def by_linen(variables, u):
    """`linen.scan`; its dropout folds in how often the body was traced, so it is left out."""
    axes = {"params": 0, "batch_stats": 0}
    stack = linen.scan(lambda block, u, _: (block(u), None), variable_axes=axes, length=DEPTH)
    run = linen.apply(lambda block, u: stack(block, u, None)[0], Block(dropout=0.0), mutable=["batch_stats"])
    return run(variables, u)


def by_apply(variables, u):
    def body(u, x):
        own, key = x
        return Block().apply(own, u, rngs={"dropout": key}, mutable=["batch_stats"])

    return jax.lax.scan(body, u, (variables, jax.random.split(KEY, DEPTH)))


def ours(dropout=0.3, **options):
    def run(variables, u):
        rngs = {"dropout": KEY} if dropout else None
        f, xs = adapter.to_scan(Block(dropout=dropout), variables, rngs=rngs)
        return jm.scan(f, u, xs, **options)

    return run


def test_values_gradients_and_statistics_are_those_of_linen_scan():
    found, expected = outcome(ours(dropout=0.0)), outcome(by_linen)
    assert nets.distance(found, expected) < 1e-12
    _, (_, changed) = expected[0]
    assert jnp.max(jnp.abs(changed["batch_stats"]["BatchNorm_0"]["mean"])) > 1e-4


@pytest.mark.parametrize(
    "options",
    nets.slow_but(
        [{}],
        [{}, dict(h=H, backend=nets.mesh(2)), dict(h=H, solver=jm.MGRIT(2, cycles=4)), dict(solver=jm.Newton(2))],
    ),
    ids=["default", "mesh", "multigrid", "newton"],
)
def test_values_gradients_and_statistics_with_dropout_are_those_of_the_module_applied_layer_by_layer(options):
    assert nets.distance(outcome(ours(**options)), outcome(by_apply)) < 1e-12


@pytest.mark.slow
def test_layers_that_change_nothing_are_propagated_dropout_included():
    class Dropout(linen.Module):
        @linen.compact
        def __call__(self, u):
            return linen.Dropout(0.3, deterministic=False)(jnp.tanh(linen.Dense(WIDTH, **DOUBLE)(u)))

    stack = adapter.init_stack(linen.Dense(WIDTH, **DOUBLE), DEPTH, jax.random.key(0), U)
    stack = {"params": {"Dense_0": stack["params"]}}
    step, theta = adapter.to_propagate(Dropout(), stack, rngs={"dropout": KEY}, call=jm.adapters.residual)

    def body(u, x):
        own, key = x
        return u + H * Dropout().apply(own, u, rngs={"dropout": key}), None

    expected, _ = jax.lax.scan(body, U, (stack, jax.random.split(KEY, DEPTH)))
    for options in ({}, dict(solver=jm.MGRIT(3, cycles=2))):
        assert nets.distance(jm.propagate(step, theta, U, h=H, **options), expected) < 1e-12


def test_running_averages_that_are_only_read_are_propagated_and_those_that_change_refused():
    step, theta = adapter.to_propagate(Block(training=False), variables())
    assert jm.propagate(step, theta, U, h=H, solver=jm.Sequential()).shape == U.shape
    step, theta = adapter.to_propagate(Block(), variables(), rngs={"dropout": KEY})
    with pytest.raises(ValueError, match=r"would be lost \(\['batch_stats'\].*jm.scan and linen.to_scan"):
        jm.propagate(step, theta, U, h=H)


def test_misuse_is_named():
    stack = variables()
    with pytest.raises(TypeError, match="the layers are a list.*stack"):
        adapter.to_scan(Block(), [stack])
    with pytest.raises(TypeError, match="is not a linen.Module"):
        adapter.to_scan(Block, stack)
    with pytest.raises(ValueError, match="different leading axes"):
        adapter.to_scan(linen.Dense(3), linen.Dense(3).init(KEY, U))
    one, other = (linen.Dense(width).init(KEY, U) for width in (4, 5))
    with pytest.raises(ValueError, match=r"layer 1 is unlike layer 0: .*\[4, 5\]"):
        jm.adapters.stack_layers([one, other])
    with pytest.raises(TypeError, match="init_stack: depth=2.0"):
        adapter.init_stack(Block(), 2.0, KEY, U)
