"""Stacks of Flax NNX modules: values, gradients and state are those of `nnx.scan` over the same stack."""

import jax
import jax.numpy as jnp
import pytest
from helpers import networks as nets

import jaxmgrit as jm

nnx = pytest.importorskip("flax.nnx", reason="flax is not installed: pip install -e '.[adapters]'")
adapter = jm.adapters.nnx

DEPTH, WIDTH = 6, 4
H = 1.0 / DEPTH
DOUBLE = dict(dtype=jnp.float64, param_dtype=jnp.float64)
U = 0.5 * jax.random.normal(jax.random.key(1), (8, WIDTH), jnp.float64)


class Block(nnx.Module):
    """With all kinds of state: batch norm's statistics, a counter of dropout, and one of its own."""

    def __init__(self, width, *, rngs):
        self.linear = nnx.Linear(width, width, use_bias=False, rngs=rngs, **DOUBLE)  # the norm takes a bias away
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs, **DOUBLE)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, u, h=H):
        self.calls[...] += 1
        return u + h * self.dropout(jnp.tanh(self.norm(self.linear(u))))


def double(module):
    """The module with statistics in double precision, which Flax makes in single."""
    nnx.update(module, jax.tree.map(nets.in_double, nnx.state(module)))
    return module


def make():
    return double(adapter.init_stack(lambda rngs: Block(WIDTH, rngs=rngs), DEPTH, nnx.Rngs(0)))


def outcome(run):
    """Value, gradients and the state after one step, of the stack run by `run(layers, u) -> u`."""
    graph, params, rest = nnx.split(make(), nnx.Param, ...)

    def loss(params, u):
        layers = nnx.merge(graph, *jax.tree.map(lambda x: x, (params, rest)))
        u = run(layers, u)
        return jnp.sum(jnp.sin(u)), (u, nnx.state(layers, nnx.Not(nnx.Any(nnx.Param, nnx.RngKey))))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, U)


def framework(layers, u):
    return nnx.scan(lambda layer, u: layer(u), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(layers, u)


def ours(**options):
    def run(layers, u):
        f, xs = adapter.to_scan(layers)
        u, changed = jm.scan(f, u, xs, **options)
        nnx.update(layers, changed)
        return u

    return run


@pytest.mark.parametrize(
    "options",
    nets.slow_but(
        [{}],
        [{}, dict(h=H, backend=nets.mesh(2)), dict(h=H, solver=jm.MGRIT(2, cycles=4)), dict(solver=jm.Newton(2))],
    ),
    ids=["default", "mesh", "multigrid", "newton"],
)
def test_values_gradients_and_state_are_those_of_nnx_scan(options):
    found, expected = outcome(ours(**options)), outcome(framework)
    assert nets.distance(found, expected) < 1e-12
    _, (_, state) = expected[0]
    assert jnp.all(state["calls"][...] == 1) and jnp.all(state["dropout"]["rngs"]["count"][...] == 1)
    assert jnp.max(jnp.abs(state["norm"]["mean"][...])) > 1e-4


def test_layers_that_change_nothing_are_propagated():
    layers = make()
    layers.eval()
    with pytest.raises(ValueError, match=r"layer changes state that would be lost \(.*calls.*jm.scan and nnx.to_scan"):
        jm.propagate(*adapter.to_propagate(layers), U, h=H)
    call = lambda layer, u, h: u + h * layer.norm(layer.dropout(layer.linear(u)))  # noqa: E731
    step, theta = adapter.to_propagate(layers, call=call)
    expected = nnx.scan(lambda layer, u: call(layer, u, H), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(layers, U)
    for options in ({}, dict(solver=jm.MGRIT(3, cycles=2))):
        assert nets.distance(jm.propagate(step, theta, U, h=H, **options), expected) < 1e-12


@pytest.mark.parametrize("part", ["norm", "dropout"])
def test_state_of_training_layers_is_refused_by_propagate(part):
    step, theta = adapter.to_propagate(make(), call=lambda layer, u, h: getattr(layer, part)(u))
    with pytest.raises(ValueError, match=f"state that would be lost .*{part}"):
        jm.propagate(step, theta, U, h=H, solver=jm.Sequential())


def test_a_list_is_stacked_where_its_layers_are_alike():
    rngs = nnx.Rngs(0)
    layers = [double(Block(WIDTH, rngs=rngs)) for _ in range(3)]
    stacked = adapter.stack(layers)
    f, xs = adapter.to_scan(stacked)
    u, changed = jm.scan(f, U, xs)
    expected = U
    for layer in layers:
        expected = layer(expected)
    assert nets.distance(u, expected) < 1e-12
    nnx.update(stacked, changed)
    assert nets.distance(stacked.norm.var[...], jnp.stack([layer.norm.var[...] for layer in layers])) < 1e-12


def test_misuse_is_named():
    rngs = nnx.Rngs(0)
    one = Block(WIDTH, rngs=rngs)
    with pytest.raises(ValueError, match=r"layer 1 is unlike layer 0: .*\[5, 5\].*a stack of each kind"):
        adapter.stack([one, Block(5, rngs=rngs)])
    with pytest.raises(ValueError, match="layer 1 is unlike layer 0: Linear.*Block"):
        adapter.stack([one, nnx.Linear(WIDTH, WIDTH, rngs=rngs)])
    with pytest.raises(ValueError, match="layers 0 and 1 share a .*close over what they share"):
        adapter.stack([one, one])
    with pytest.raises(ValueError, match="no layers"):
        adapter.stack([])
    with pytest.raises(TypeError, match="the layers are a List.*stack"):
        adapter.to_scan(nnx.List([one]))
    with pytest.raises(TypeError, match="is not an nnx.Module"):
        adapter.to_propagate(lambda u: u)
    with pytest.raises(ValueError, match="different leading axes"):
        adapter.to_scan(nnx.Linear(3, 4, rngs=rngs))
    with pytest.raises(ValueError, match="init_stack: depth=0"):
        adapter.init_stack(lambda rngs: Block(4, rngs=rngs), 0, rngs)
