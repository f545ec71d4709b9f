"""`propagate` in the place of `lax.scan`: the same values and gradients under every transformation of JAX."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks as nets

import jaxmgrit as jm

LAYERS, FINAL_TIME = 37, 2.0
H = FINAL_TIME / LAYERS
MULTIGRID = dict(
    solver=jm.MGRIT(3, cycles=40, rtol=0.0, coarse_params=jm.average, coarse_step=jm.midpoint),
    adjoint=jm.MGRIT(4, cf_relaxations=(1, 1), cycles=40, rtol=0.0),
)


# As the default on several devices, but on two levels: programs grow with them. On one device it is a plain scan.
CONVERGED = jm.MGRIT(levels=2, cycles=50, rtol=0.0, sequential_fallback=True)


def propagated(step, theta, u0, h, **options):
    options = options or dict(solver=CONVERGED, adjoint=CONVERGED)
    return jm.propagate(step, theta, u0, h=h, **options)


def default(step, theta, u0, h):
    return jm.propagate(step, theta, u0, h=h)


def objective(way, theta, u0, h):
    return jnp.sum(jnp.sin(way(nets.tanh_step, theta, u0, h)))


@pytest.fixture(scope="module")
def network():
    return nets.rough(LAYERS), nets.state()


def both(f, *args):
    """What a function of `propagate` returns, and what the same function of `scan` does."""
    return f(propagated, *args), f(nets.scan, *args)


@pytest.mark.parametrize("layers", nets.slow_but([1, LAYERS], [1, 2, 5, LAYERS, 203]))
def test_value_and_gradients_under_jit_are_those_of_scan(layers):
    @functools.partial(jax.jit, static_argnums=0)
    def run(way, theta, u0, h):
        return jax.value_and_grad(functools.partial(objective, way), argnums=(0, 1, 2))(theta, u0, h)

    found, expected = both(run, nets.rough(layers), nets.state(), FINAL_TIME / layers)
    assert nets.distance(found, expected) < 1e-12


@pytest.mark.slow
def test_value_and_gradient_without_jit_are_those_of_scan(network):
    found, expected = both(lambda way, *args: jax.value_and_grad(functools.partial(objective, way))(*args), *network, H)
    assert nets.distance(found, expected) < 1e-12


@pytest.mark.parametrize(
    "options",
    [
        MULTIGRID,
        dict(solver=jm.Sequential(), adjoint=jm.Sequential()),
        pytest.param(dict(solver=jm.Sequential()), marks=pytest.mark.slow),
        pytest.param(dict(adjoint=jm.Sequential()), marks=pytest.mark.slow),
    ],
    ids=["other multigrids", "sequential", "sequential state", "sequential adjoint"],
)
def test_gradients_for_all_arguments_with_any_solvers_are_those_of_scan(network, options):
    h = nets.steps_of_unequal_size(LAYERS, FINAL_TIME)
    way = functools.partial(propagated, **options)
    found, expected = (
        jax.jit(jax.grad(functools.partial(objective, f), argnums=(0, 1, 2)))(*network, h) for f in (way, nets.scan)
    )
    assert nets.distance(found, expected) < 1e-11


@pytest.mark.slow
def test_vmap_over_states_and_its_gradient_are_those_of_scan(network):
    theta, u0 = network
    several = jnp.stack([u0, -2.0 * u0])

    @functools.partial(jax.jit, static_argnums=0)
    def run(way, theta, several):
        def total(theta, several):
            return jnp.sum(jax.vmap(lambda u: objective(way, theta, u, H))(several))

        return jax.value_and_grad(total, argnums=(0, 1))(theta, several)

    found, expected = both(run, theta, several)
    assert nets.distance(found, expected) < 1e-12


@pytest.mark.slow
def test_vmap_over_parameters_and_states_of_a_gradient_is_that_of_scan(network):
    theta, u0 = network
    thetas = jax.tree.map(lambda x: jnp.stack([x, 0.1 * x]), theta)

    @functools.partial(jax.jit, static_argnums=0)
    def run(way, thetas, several):
        gradient = jax.grad(functools.partial(objective, way), argnums=(0, 1, 2))
        return jax.vmap(gradient, in_axes=(0, 0, None))(thetas, several, H)

    found, expected = both(run, thetas, jnp.stack([u0, -2.0 * u0]))
    assert nets.distance(found, expected) < 1e-12


@pytest.mark.slow
def test_training_with_adam_inside_jit_is_that_of_scan(network):
    theta, u0 = network
    optimizer = nets.promoting(optax.adam(1e-2))

    @functools.partial(jax.jit, static_argnums=0)
    def update(way, theta, state):
        loss, gradient = jax.value_and_grad(functools.partial(objective, way))(theta, u0, H)
        updates, state = optimizer.update(gradient, state, theta)
        return optax.apply_updates(theta, updates), state, loss

    def train(way):
        now, state, losses = theta, optimizer.init(theta), []
        for _ in range(5):
            now, state, loss = update(way, now, state)
            losses.append(loss)
        return now, losses

    found, expected = both(train)
    assert nets.distance(found, expected) < 1e-10


def closing_over(way, strength, theta, u0):
    """The step closes over `strength`, which may be traced, and over a plain array."""
    sign = jnp.asarray([[1.0, -1.0, 1.0, 1.0]])

    def step(theta, u, h):
        return nets.tanh_step(theta, strength * sign * u, h)

    return jnp.sum(way(step, theta, u0, H))


def test_values_the_step_closes_over_are_differentiated(network):
    @functools.partial(jax.jit, static_argnums=0)
    def run(way, strength, theta, u0):
        return jax.value_and_grad(functools.partial(closing_over, way), argnums=(0, 1, 2))(strength, theta, u0)

    found, expected = both(run, 1.1, *network)
    assert nets.distance(found, expected) < 1e-12


@pytest.mark.slow
def test_values_the_step_closes_over_are_differentiated_without_jit(network):
    found, expected = both(lambda way: jax.grad(functools.partial(closing_over, way))(1.1, *network))
    assert nets.distance(found, expected) < 1e-12


def test_values_the_step_closes_over_may_be_traced_by_jit_alone(network):
    found, expected = both(lambda way: jax.jit(functools.partial(closing_over, way))(1.1, *network))
    assert nets.distance(found, expected) < 1e-13


@pytest.mark.slow
def test_values_the_step_closes_over_may_be_mapped(network):
    theta, u0 = network

    def run(way):
        gradient = jax.grad(functools.partial(closing_over, way))
        return jax.jit(jax.vmap(lambda s: gradient(s, theta, u0)))(jnp.asarray([0.9, 1.0, 1.1]))

    found, expected = both(run)
    assert nets.distance(found, expected) < 1e-12


@pytest.mark.slow
def test_a_network_of_networks_has_the_gradient_of_scans_of_scans(network):
    theta, u0 = network

    def run(way):
        def block(u, theta):
            return way(nets.tanh_step, theta, u, H), None

        def total(thetas):
            return jnp.sum(jax.lax.scan(jax.checkpoint(block), u0, thetas)[0])

        return jax.jit(jax.grad(total))(jax.tree.map(lambda x: jnp.stack([x, 0.1 * x]), theta))

    found, expected = both(run)
    assert nets.distance(found, expected) < 1e-12


FORWARD = [lambda f, x: jax.jvp(f, (x,), (x,)), lambda f, x: jax.jacfwd(f)(x)]


@pytest.mark.parametrize("forward", FORWARD, ids=["jvp", "jacfwd"])
def test_forward_mode_is_refused_where_a_solver_is_named_and_works_where_none_is(network, forward):
    def of(way):
        return forward(lambda u: way(nets.tanh_step, network[0], u, H), network[1])

    with pytest.raises(TypeError, match="propagate: forward-mode"):
        of(propagated)
    with pytest.raises(TypeError, match="propagate: forward-mode"):
        jax.jit(lambda u: forward(lambda u: propagated(nets.tanh_step, network[0], u, H), u)).lower(network[1])
    assert nets.distance(of(default), of(nets.scan)) < 1e-13


def test_a_second_derivative_through_a_tolerance_is_refused_by_name(network):
    theta, u0 = network

    def steepness(u):
        return jnp.sum(jax.grad(lambda u: jnp.sum(propagated(nets.tanh_step, theta, u, H)))(u) ** 2)

    with pytest.raises(TypeError, match=r"propagate: a solve that stops by a tolerance.*MGRIT\(cycles=k\)"):
        jax.eval_shape(jax.grad(steepness), u0)


@pytest.mark.parametrize("large", [False, True])
def test_by_default_value_gradient_and_code_are_those_of_a_scan(network, large, monkeypatch):
    if large:  # then layers are computed again
        monkeypatch.setattr("jaxmgrit.system.plain._KEPT_BYTES", 0)

    def run(way):
        def value(theta, u0, h):
            u = way(lambda t, u, h: nets.tanh_step(t, u, h), theta, u0, h)
            return (jnp.sum(jnp.sin(u[0])), u[1]) if isinstance(u, tuple) else (jnp.sum(jnp.sin(u)), 0)

        return jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True)(*network, jnp.asarray(H))

    found = run(lambda *args: jm.propagate(*args[:3], h=args[3], with_result=True))
    assert nets.distance(found, run(nets.scan)) < 1e-13


def test_by_default_the_code_tells_values_that_are_not_finite(network):
    _, code = jm.propagate(nets.tanh_step, network[0], network[1] * jnp.inf, h=H, with_result=True)
    assert code == jm.Result.NOT_FINITE


@pytest.mark.slow
def test_the_result_code_can_be_had_beside_the_value_and_its_gradient(network):
    theta, u0 = network

    def value(theta, cycles):
        solver = jm.MGRIT(3, cycles=cycles, rtol=1e-12)
        u, result = jm.propagate(nets.tanh_step, theta, u0, h=H, solver=solver, with_result=True)
        return jnp.sum(u), result

    _, result = jax.grad(value, has_aux=True)(theta, 1)
    assert result == jm.Result.CYCLES_USED_UP
    with pytest.raises(jm.SolveError, match="allow more cycles"):
        jm.check(result, tolerance=True)
    _, result = jax.grad(value, has_aux=True)(theta, 40)
    assert result == jm.Result.CONVERGED


def test_a_network_on_which_the_cycles_diverge_is_propagated_all_the_same():
    theta, u0, h = nets.rough(256, scale=3.0), nets.state(), 100.0 / 256
    cycles = jm.MGRIT(cycles=20, rtol=1e-8)
    u, result = jm.propagate(nets.tanh_step, theta, u0, h=h, solver=cycles, with_result=True)
    assert result != jm.Result.CONVERGED, "the cycles must fail for the test to say anything"
    u, result = jm.propagate(nets.tanh_step, theta, u0, h=h, solver=CONVERGED, with_result=True)
    assert result == jm.Result.SEQUENTIAL
    # Chaotic: rounding itself grows by orders of magnitude, unless the operations are the same ones.
    assert nets.distance(u, nets.scan(nets.tanh_step, theta, u0, h)) < 1e-9


def noisy(theta, u, h):
    noise = nets.keyed(theta["key"])
    return u + h * (jnp.tanh(u @ theta["w"]) + noise * (theta["kind"] % 2).astype(u.dtype))


def test_integer_and_key_leaves_are_carried_and_not_differentiated():
    theta = {
        "w": nets.rough(LAYERS)["w"],
        "kind": jnp.arange(LAYERS),
        "key": jax.random.split(jax.random.key(0), LAYERS),
    }

    def run(way):
        def total(theta, u):
            return jnp.sum(way(noisy, theta, u, H))

        return jax.jit(jax.grad(total, allow_int=True, argnums=(0, 1)))(theta, nets.state())

    found, expected = both(run)
    assert found[0]["kind"].dtype == found[0]["key"].dtype == jax.dtypes.float0
    assert nets.distance((found[0]["w"], found[1]), (expected[0]["w"], expected[1])) < 1e-12


STEP_SIZES = {
    "numpy": np.full(LAYERS, H),
    "jax": jnp.full(LAYERS, H),
    "number": np.float64(H),
    "scalar": jnp.asarray(H),
}


@pytest.mark.parametrize("kind", nets.slow_but(["number"], STEP_SIZES))
def test_step_sizes_may_be_concrete_arrays_inside_jit(network, kind):
    h = STEP_SIZES[kind]
    found, expected = both(
        lambda way: jax.jit(jax.grad(lambda theta: objective(way, theta, network[1], h)))(network[0])
    )
    assert nets.distance(found, expected) < 1e-12


def test_few_cycles_give_the_inexact_gradient_of_layer_gradients(network):
    theta, u0 = network
    solver, adjoint = jm.MGRIT(3, cycles=1), jm.MGRIT(3, cycles=2, cf_relaxations=(1, 1))
    sol, adj, gradients = nets.solved(nets.tanh_step, theta, u0, H, solver, adjoint, lam_final=jnp.ones_like(u0))

    def total(theta, u0):
        return jnp.sum(jm.propagate(nets.tanh_step, theta, u0, h=H, solver=solver, adjoint=adjoint))

    d_theta, d_u0 = jax.grad(total, argnums=(0, 1))(theta, u0)
    assert nets.distance(d_theta, gradients) < 1e-14
    assert nets.distance(d_u0, adj.lam_initial) < 1e-14


@pytest.mark.slow
def test_single_precision_agrees_with_scan_to_single_precision(network):
    single = jax.tree.map(lambda x: x.astype(jnp.float32), network)
    found, expected = both(lambda way: jax.jit(jax.grad(functools.partial(objective, way)))(*single, H))
    assert {x.dtype.name for x in jax.tree.leaves(found)} == {"float32"}
    assert nets.distance(found, expected) < 1e-5


@pytest.mark.slow
def test_half_precision_agrees_with_scan_to_half_precision(network):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), network)
    found, expected = both(lambda way: jax.jit(functools.partial(way, nets.tanh_step))(*half, H).astype(jnp.float32))
    assert nets.distance(found, expected) < 2e-2


def test_a_leaf_of_the_state_may_be_empty(network):
    theta, u0 = network

    def step(theta, u, h):
        return nets.tanh_step(theta, u[0], h), u[1]

    found, expected = both(lambda way: way(step, theta, (u0, jnp.zeros((0, 2))), H))
    assert nets.distance(found, expected) < 1e-13


@pytest.mark.slow
def test_pytree_states_have_the_gradients_of_scan():
    def step(theta, u, h):
        p = u["p"] - h * theta["k"] * jnp.sin(u["q"])
        return {"p": p, "q": u["q"] + h * p}

    theta = {"k": jnp.linspace(0.5, 2.0, LAYERS)}
    u0 = {"p": jnp.asarray([0.1, 0.2]), "q": jnp.asarray([1.0, -0.5])}

    def run(way):
        def total(theta, u):
            u = way(step, theta, u, H)
            return jnp.sum(u["p"] * u["q"])

        return jax.grad(total, argnums=(0, 1))(theta, u0)

    found, expected = both(run)
    assert nets.distance(found, expected) < 1e-12


def test_arguments_may_be_numpy_arrays(network):
    theta, u0 = jax.tree.map(np.asarray, network)
    found, expected = both(lambda way: way(nets.tanh_step, theta, u0, np.float64(H)))
    assert nets.distance(found, expected) < 1e-13


CLOSED = {"integers": lambda: jnp.arange(3), "keys": lambda: jax.random.split(jax.random.key(0), 3)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLOSED)
def test_a_gradient_through_vmap_over_integers_or_keys_the_step_closes_over_is_that_of_scan(network, kind):
    theta, u0 = network

    def run(way):
        def one(theta, closed):
            def step(theta, u, h):
                size = closed.astype(u.dtype) if kind == "integers" else nets.keyed(closed)
                return nets.tanh_step(theta, u * size, h)

            return jnp.sum(way(step, theta, u0, H))

        return jax.grad(lambda theta: jnp.sum(jax.vmap(lambda closed: one(theta, closed))(CLOSED[kind]())))(theta)

    found, expected = both(run)
    assert nets.distance(found, expected) < 1e-12


@dataclasses.dataclass
class Layer:
    """A step that is an object with parameters of its own, as Equinox's modules are: callable and not hashable."""

    strength: jax.Array

    def __call__(self, theta, u, h):
        return nets.tanh_step(theta, self.strength * u, h)


@pytest.mark.slow
def test_a_step_may_be_a_callable_object_that_cannot_be_hashed(network):
    def run(way):
        return jax.jit(jax.value_and_grad(lambda strength: jnp.sum(way(Layer(strength), *network, H))))(1.1)

    found, expected = both(run)
    assert nets.distance(found, expected) < 1e-12


@pytest.mark.parametrize(
    "solver", nets.slow_but([jm.Sequential()], [jm.Sequential(), jm.MGRIT(3, levels=2, cycles=12)])
)
def test_second_derivatives_of_solvers_without_a_tolerance_are_those_of_scan(network, solver):
    theta, u0 = network

    def run(way):
        def steepness(u):
            return jnp.sum(jax.grad(lambda u: jnp.sum(way(nets.tanh_step, theta, u, H) ** 2))(u) ** 2)

        return jax.jit(jax.grad(steepness))(u0)

    found, expected = run(functools.partial(propagated, solver=solver, adjoint=solver)), run(nets.scan)
    assert nets.distance(found, expected) < 1e-11


@pytest.mark.slow
def test_large_states_whose_layers_are_computed_again_have_the_gradient_of_scan():
    theta, u0 = nets.rough(20), nets.state(batch=2100)
    assert u0.nbytes > 1 << 16

    def total(run):
        return jax.jit(jax.grad(lambda t, u: jnp.mean(jnp.cos(run(t, u))), argnums=(0, 1)))

    exact = total(lambda t, u: nets.scan(nets.tanh_step, t, u, 0.1))(theta, u0)
    found = total(lambda t, u: jm.propagate(nets.tanh_step, t, u, h=0.1))(theta, u0)
    assert nets.distance(found, exact) < 1e-12
