"""Newton's adjoint with gradients, in training, over a batch that is spread too, and how much memory it takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks as nets
from helpers import recurrences as rec

import jaxmgrit as jm

WIDTH, BATCH = 4, 4
EXACTLY = dict(rtol=None, sequential_fallback=False)


def grid(data, layers):
    """A mesh of so many parts of the batch times so many devices for the layers."""
    auto = (jax.sharding.AxisType.Auto,) * 2
    devices = jax.devices()[: data * layers]
    return jm.Mesh(
        jax.make_mesh((data, layers), ("data", "layers"), axis_types=auto, devices=devices), data_axis="data"
    )


# Linearised once in two chunks; every interval by itself; all side by side; with an incomplete interval.
CASES = [(48, 3, jm.Sequential()), (48, 1, jm.Newton(8)), (48, 6, jm.Newton(8)), (45, 6, jm.Sequential())]


@pytest.mark.parametrize("layers, intervals, solver", nets.slow_but(CASES[:1], CASES))
def test_gradients_of_shared_weights_inputs_and_outputs_are_those_of_scan(layers, intervals, solver):
    weights, xs, u0 = rec.gru_weights(2, WIDTH), rec.inputs(layers, batch=BATCH), jnp.zeros((BATCH, WIDTH))
    newton = jm.Newton(8, intervals_per_sweep=intervals)

    def run(way):
        def total(weights, xs, u0):
            def f(u, x):
                u = rec.gru(weights, x, u)
                return u, jnp.sin(u) * weights["b"][None, :WIDTH]

            last, ys = way(f, u0, xs)
            return jnp.sum(last**2) + jnp.sum(ys**3)

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(weights, xs, u0)

    weights["b"] += 0.7
    value = run(lambda f, u0, xs: jm.scan(f, u0, xs, solver=solver, adjoint=newton))
    assert nets.distance(value, run(jax.lax.scan)) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("data, layers", [(2, 1), (2, 2)])
def test_a_batch_spread_over_devices_gives_the_votes_and_values_of_one(data, layers):
    h = 0.1
    theta, u0 = nets.rough(48), nets.state(batch=BATCH)
    u0 = u0.at[-1].multiply(30.0)  # so that the parts of the batch would stop at different iterations

    def cost(theta, u, h):
        return h * (jnp.mean(jnp.sum(u * u, axis=1)) + jnp.sum(theta["w"] ** 2))

    def everything(backend):
        sol, adj, gradients = nets.solved(nets.tanh_step, theta, u0, h, jm.Newton(6), cost=cost, backend=backend)
        assert (sol.result, adj.result) == (jm.Result.CONVERGED, jm.Result.CONVERGED)
        return (sol.cycles, adj.cycles), (sol.u_final, adj.lam_initial, gradients)

    steps, values = everything(grid(data, layers))
    expected_steps, expected = everything(jm.Local())
    assert nets.distance(steps, expected_steps) == 0
    assert nets.distance(values, expected) < 1e-12


@pytest.mark.slow
def test_one_shot_training_by_so_many_iterations_converges_to_the_exact_gradient():
    problem, params, batch = nets.classification(32)
    newton = jm.Newton(4, iterations=1, **EXACTLY)
    trainer = jm.OneShot(problem, nets.recording(), newton, newton, jm.CyclesThenGradient())
    state = trainer.init(params, batch)
    update = jax.jit(trainer.step)
    for _ in range(6):  # the parameters stay: warm starts alone make the gradient exact
        state, info = update(state, batch)
    exact = jax.grad(lambda p: nets.exact_objective(problem, p, batch))(params)
    norm = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(exact)))
    assert abs(info.grad_norm / norm - 1) < 1e-12
    assert info.residual_norm < 1e-12 and update._cache_size() == 1


@pytest.mark.slow
def test_memory_is_that_of_the_jacobians_and_one_sweep():
    layers, factor, width, batch = 4096, 32, 16, 256
    weights, u0 = rec.gru_weights(2, width), jnp.zeros((batch, width))
    xs = jax.ShapeDtypeStruct((layers, batch, 2), jnp.float64)
    newton = jm.Newton(factor, intervals_per_sweep=1)

    def final(xs):
        return jm.solve(lambda x, u, h: rec.gru(weights, x, u), xs, u0, h=1.0, solver=newton).u_final

    intervals = layers // factor
    c_points = 4 * intervals * batch * width * 8
    jacobians = 3 * intervals * batch * width**2 * 8
    assert jax.jit(final).lower(xs).compile().memory_analysis().temp_size_in_bytes <= 1.2 * (c_points + jacobians)


def test_values_that_are_not_finite_are_told_and_no_value_is_called_converged():
    theta, u0 = nets.rough(32), nets.state(batch=BATCH)
    theta["b"] = theta["b"].at[20].set(np.inf)
    sol = jm.solve(lambda t, u, h: u + h * (u @ t["w"] + t["b"][None]), theta, u0, h=0.1, solver=jm.Newton(4))
    assert sol.result == jm.Result.NOT_FINITE
    with pytest.raises(jm.SolveError):
        sol.check()
