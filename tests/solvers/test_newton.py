"""Newton on intervals: exact where it says so, quadratic, and honest about where it is not the right solver."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks as nets
from helpers import recurrences as rec

import jaxmgrit as jm
from jaxmgrit.solvers.newton import iteration

WIDTH, BATCH = 4, 3
ONCE = dict(rtol=None, sequential_fallback=False)


def gru_step(weights=None):
    weights = rec.gru_weights(2, WIDTH) if weights is None else weights
    return lambda x, u, h: rec.gru(weights, x, u)


def solved(step, theta, u0, h, solver, backend=None):
    return jm.solve(step, theta, u0, h=h, solver=solver, **({} if backend is None else {"backend": backend}))


def error(sol, step, theta, u0, h):
    return nets.distance(sol.u_final, nets.scan(step, theta, u0, h))


CELLS = {
    "tanh": (lambda w, x, u: nets.tanh_step({**x, "b": w * x["b"]}, u, 0.1), jnp.asarray(1.1), nets.rough, nets.state),
    "gru": (rec.gru, rec.gru_weights(2, WIDTH), rec.inputs, lambda: jnp.zeros((BATCH, WIDTH))),
    "lstm": (
        rec.lstm,
        rec.lstm_weights(2, WIDTH),
        rec.inputs,
        lambda: {"cell": jnp.zeros((BATCH, WIDTH)), "hidden": jnp.zeros((BATCH, WIDTH))},
    ),
}


@pytest.mark.parametrize(
    "cell, devices",
    nets.slow_but([("gru", 1)], [(cell, devices) for cell in CELLS for devices in (1, 2, 4)]),
)
def test_value_and_all_gradients_are_those_of_scan(cell, devices):
    f, weights, make, state = CELLS[cell]
    theta, u0 = make(53), state()
    options = dict(solver=jm.Newton(8), adjoint=jm.Newton(6), backend=nets.mesh(devices))

    def run(way):
        def total(weights, theta, u0):
            u = way(lambda x, u, h: f(weights, x, u), theta, u0, 1.0)
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(u))

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(weights, theta, u0)

    found = run(lambda step, theta, u0, h: jm.propagate(step, theta, u0, h=h, **options))
    assert nets.distance(found, run(nets.scan)) < 1e-12


@pytest.mark.slow
def test_under_vmap_every_state_is_one_sample_and_the_gradient_is_that_of_scan():
    theta, u0 = rec.inputs(40, batch=1)[:, 0], jnp.asarray(np.random.default_rng(0).normal(size=(5, WIDTH)))
    weights = rec.gru_weights(2, WIDTH)

    def step(x, u, h):
        return rec.gru(weights, x[None], u[None])[0]

    def run(way):
        gradient = jax.grad(lambda t, u: jnp.sum(way(step, t, u, 1.0) ** 2), argnums=(0, 1))
        return jax.jit(jax.vmap(gradient, in_axes=(None, 0)))(theta, u0)

    newton = jm.Newton(8, batch_axis=None)
    found = run(lambda step, t, u, h: jm.propagate(step, t, u, h=h, solver=newton, adjoint=newton))
    assert nets.distance(found, run(nets.scan)) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_a_linear_network_is_exact_after_one_iteration(devices):
    theta, u0 = nets.rough(50, scale=0.3), nets.state()

    def linear(theta, u, h):
        return u + h * (u @ theta["w"] + theta["b"][None])

    sol = solved(linear, theta, u0, 0.1, jm.Newton(4, iterations=1, **ONCE), nets.mesh(devices))
    assert error(sol, linear, theta, u0, 0.1) < 1e-13
    sol = solved(linear, theta, u0, 0.1, jm.Newton(4), nets.mesh(devices))
    assert (sol.cycles, sol.result) == (1, jm.Result.CONVERGED)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_the_first_k_c_points_are_exact_after_k_iterations_whatever_the_jacobians(factor, monkeypatch):
    exact = iteration.linearise_interval

    def spoilt(*args):
        found = exact(*args)
        return found._replace(jacobian=factor * found.jacobian)

    monkeypatch.setattr(iteration, "linearise_interval", spoilt)
    theta, u0, k = nets.rough(64, scale=1.0), nets.state(), 3

    def step(theta, u, h):  # one of its own, so that no program is taken from the cache
        return nets.tanh_step(theta, u, h)

    sol = solved(step, theta, u0, 0.3, jm.Newton(4, iterations=k, **ONCE))
    states = nets.scan_states(step, theta, u0, 0.3)[4::4]
    assert nets.distance(sol.c_points.ends[:k], states[:k]) < 1e-14
    assert nets.distance(sol.c_points.ends, states) > 1e-6, "more would be exact anyway"


def test_convergence_is_quadratic_and_deep_tanh_networks_take_five_iterations():
    for layers in (64, 512):
        theta, u0 = nets.rough(layers), nets.state()
        sol = solved(nets.tanh_step, theta, u0, 5.0 / layers, jm.Newton(8))
        assert sol.cycles <= 5 and sol.result == jm.Result.CONVERGED
        assert error(sol, nets.tanh_step, theta, u0, 5.0 / layers) < 1e-12
        norms = np.asarray(sol.residual_norms[: int(sol.cycles)])
        assert (norms[1:] <= 2.0 * norms[:-1] ** 2).all()
        assert (sol.residual_norms[int(sol.cycles) :] == -1).all()


@pytest.mark.slow
@pytest.mark.parametrize("layers", [256, 2048, 16384])
def test_a_random_gru_takes_two_iterations_at_any_length(layers):
    theta, u0 = rec.inputs(layers), jnp.zeros((BATCH, WIDTH))
    sol = solved(gru_step(), theta, u0, 1.0, jm.Newton(32, iterations=2, **ONCE))
    assert error(sol, gru_step(), theta, u0, 1.0) < 1e-12
    sol = solved(gru_step(), theta, u0, 1.0, jm.Newton(32))
    assert sol.cycles <= 3 and sol.result == jm.Result.CONVERGED


@pytest.mark.slow
@pytest.mark.parametrize("solver", [jm.Sequential(), jm.MGRIT(5, cycles=20), jm.Newton(7)])
def test_the_adjoint_is_exact_after_one_iteration_whichever_solver_made_the_state(solver):
    theta, u0, h = nets.rough(61), nets.state(), 0.05
    once = jm.Newton(7, iterations=1, **ONCE)
    _, adj, gradients = nets.solved(nets.tanh_step, theta, u0, h, solver, once, cost=nets.tanh_cost)

    def total(theta, u):
        cost = nets.scan_cost(nets.tanh_step, nets.tanh_cost, theta, u, h)
        return cost + 0.25 * jnp.sum(nets.scan(nets.tanh_step, theta, u, h) ** 2)

    exact = jax.grad(total, argnums=(0, 1))(theta, u0)
    assert nets.distance((gradients, adj.lam_initial), exact) < 1e-13
    _, adj, _ = nets.solved(nets.tanh_step, theta, u0, h, solver, jm.Newton(7), cost=nets.tanh_cost)
    assert (adj.cycles, adj.result) == (1, jm.Result.CONVERGED)


@pytest.mark.slow
def test_an_adjoint_that_decays_by_many_orders_in_single_precision_takes_one_iteration():
    theta, u0 = rec.inputs(1024).astype(jnp.float32), jnp.zeros((BATCH, WIDTH), jnp.float32)
    weights = jax.tree.map(lambda x: x.astype(jnp.float32), rec.gru_weights(2, WIDTH))
    step = gru_step(weights)
    sol = solved(step, theta, u0, 1.0, jm.Sequential(32))
    adj = jm.adjoint_solve(step, theta, sol, sol.u_final, h=1.0, solver=jm.Newton(32))
    assert jnp.max(jnp.abs(adj.lam_initial)) < 1e-30
    assert (adj.cycles, adj.result) == (1, jm.Result.CONVERGED)


@functools.cache
def latch():
    return rec.trained_latch()


@pytest.mark.slow
def test_long_intervals_converge_on_a_trained_latch_where_single_layers_end_in_the_fallback():
    (theta, _), u0 = rec.pulses(8192, 4, 0.003), jnp.zeros((4, 8))
    step = gru_step(latch())
    sol = solved(step, theta, u0, 1.0, jm.Newton(128))
    assert sol.cycles <= 12 and sol.result == jm.Result.CONVERGED
    assert error(sol, step, theta, u0, 1.0) < 1e-12
    sol = solved(step, theta, u0, 1.0, jm.Newton(1))
    assert sol.result == jm.Result.SEQUENTIAL
    assert error(sol, step, theta, u0, 1.0) < 1e-12
    assert "one after another" in jm.Result(int(sol.result)).sentence


@pytest.mark.slow
def test_weights_moved_a_little_take_three_iterations_from_the_c_points_of_before():
    (theta, _), u0, weights = rec.pulses(1024, 4, 0.01), jnp.zeros((4, 8)), latch()
    before = solved(gru_step(weights), theta, u0, 1.0, jm.Newton(32))
    moved = gru_step(jax.tree.map(lambda x: x * 1.001, weights))
    sol = jm.solve(moved, theta, u0, h=1.0, solver=jm.Newton(32), guess=before.c_points)
    assert sol.cycles <= 3 and sol.result == jm.Result.CONVERGED
    assert error(sol, moved, theta, u0, 1.0) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("factor", [16, 64])
def test_chaos_ends_in_the_fallback_and_is_exact(factor):
    theta, u0 = jnp.zeros(1024), jnp.asarray([[1.0, 1.0, 20.0]])
    sol = solved(rec.lorenz, theta, u0, 0.05, jm.Newton(factor))
    assert sol.result == jm.Result.SEQUENTIAL
    assert error(sol, rec.lorenz, theta, u0, 0.05) < 1e-6  # rounding itself grows by many orders of magnitude
    sol = solved(rec.lorenz, theta, u0, 0.05, jm.Newton(factor, sequential_fallback=False))
    assert sol.result not in (jm.Result.CONVERGED, jm.Result.SEQUENTIAL)
    with pytest.raises(jm.SolveError):
        sol.check()


@pytest.mark.slow
def test_coupled_samples_are_reported_and_the_result_is_exact():
    theta, u0 = rec.inputs(48), jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, WIDTH)))
    weights = rec.gru_weights(2, WIDTH)

    def step(x, u, h):
        u = rec.gru(weights, x, u)
        return u - 0.5 * jnp.mean(u, axis=0, keepdims=True)

    sol, adj, _ = nets.solved(step, theta, u0, 1.0, jm.Newton(4))
    assert (sol.result, adj.result) == (jm.Result.COUPLED, jm.Result.COUPLED)
    assert "samples" in jm.Result(int(sol.result)).sentence
    assert error(sol.check(), step, theta, u0, 1.0) < 1e-12
    assert (
        nets.distance(adj.lam_initial, jax.grad(lambda u: 0.25 * jnp.sum(nets.scan(step, theta, u, 1.0) ** 2))(u0))
        < 1e-11
    )
    whole = solved(step, theta, u0, 1.0, jm.Newton(4, batch_axis=None))
    assert whole.result == jm.Result.CONVERGED and whole.cycles < sol.cycles
    assert solved(gru_step(), theta, u0, 1.0, jm.Newton(4)).result == jm.Result.CONVERGED


@pytest.mark.slow
def test_channels_take_states_of_any_width_whose_leaves_interact_at_equal_positions():
    width, theta = 150, rec.inputs(40, width=150)
    u0 = {"p": jnp.ones((BATCH, width)), "q": jnp.zeros((BATCH, width))}

    def step(x, u, h):
        p = 0.9 * u["p"] - h * jnp.sin(u["q"]) + h * x
        return {"p": p, "q": 0.9 * u["q"] + h * jnp.tanh(p)}

    newton = jm.Newton(8, jacobian="channels")
    sol, adj, _ = nets.solved(step, theta, u0, 0.3, newton)
    assert sol.result == adj.result == jm.Result.CONVERGED and sol.cycles <= 5 and adj.cycles == 1
    assert error(sol, step, theta, u0, 0.3) < 1e-12
    with pytest.raises(ValueError, match="300 components, more than 128.*jacobian='channels'"):
        solved(step, theta, u0, 0.3, jm.Newton(8))
    with pytest.raises(ValueError, match="leaves of one shape"):
        solved(lambda x, u, h: u, theta, (u0["p"], u0["p"][:, :3]), 0.3, newton)


@pytest.mark.slow
def test_complex_states_have_jacobians_of_real_and_imaginary_parts():
    theta = jax.lax.complex(0.5 * rec.inputs(30, batch=2), 0.2 * rec.inputs(30, batch=2, seed=5))
    u0 = jnp.asarray([[1.0 + 1.0j, 0.5], [0.3j, -1.0]])

    def step(x, u, h):
        return 0.8 * jnp.conj(u) + 0.2 * jnp.sin(u + x)  # not holomorphic

    sol, adj, _ = nets.solved(step, theta, u0, 0.2, jm.Newton(4))
    assert sol.result == adj.result == jm.Result.CONVERGED and sol.cycles <= 6 and adj.cycles == 1
    assert error(sol, step, theta, u0, 0.2) < 1e-13
    exact = jm.adjoint_solve(step, theta, sol, 0.5 * sol.u_final, h=0.2, solver=jm.Sequential())
    assert nets.distance(adj.lam_initial, exact.lam_initial) < 1e-13

    def gradient(**solvers):  # of 28 layers, so that all intervals are complete and linearised with the gradients
        def total(theta):
            return jnp.sum(jnp.abs(jm.propagate(step, theta, u0, h=0.2, **solvers)) ** 2)

        return jax.grad(total)(theta[:28])

    assert nets.distance(gradient(solver=jm.Sequential(), adjoint=jm.Newton(4)), gradient()) < 1e-13


@pytest.mark.slow
def test_samples_may_lie_along_another_axis():
    theta, u0 = rec.inputs(30), jnp.zeros((WIDTH, BATCH))
    weights = rec.gru_weights(2, WIDTH)

    def step(x, u, h):
        return rec.gru(weights, x, u.T).T

    sol = solved(step, theta, u0, 1.0, jm.Newton(4, batch_axis=1))
    assert sol.result == jm.Result.CONVERGED
    assert error(sol, step, theta, u0, 1.0) < 1e-13


def test_accelerators_get_the_shortest_intervals_whose_jacobians_fit():
    class Accelerator(jm.Local):
        platform = "gpu"

    def factor(layers, batch, width):
        state = jax.ShapeDtypeStruct((batch, width), jnp.float32)
        return jm.Newton().fitted(layers, state, Accelerator()).coarsening_factor

    assert [factor(10_000, 16, 4), factor(10_000, 16, 64), factor(8, 1, 1)] == [16, 64, 8]
    assert jm.Newton().fitted(10_000, jnp.zeros((1, 4)), jm.Local()).coarsening_factor == 64


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("backward", [False, True])
def test_the_recurrence_of_accelerators_is_that_of_cpus(devices, backward):
    rng = np.random.default_rng(0)
    jacobians, residuals = (jnp.asarray(rng.normal(size=s)) for s in ((8, 3, 2, 3), (8, 2, 3)))

    class Accelerator(type(nets.mesh(devices))):
        platform = "gpu"

    def run(backend):
        (level,) = jm.Newton(1).hierarchy(8, devices)

        def body(jacobians, residuals):
            grid = iteration.Grid(level, backend, None, None, backward=backward)
            return iteration.recur(grid, jacobians, residuals)

        return backend.lift(body, ("sharded", "sharded"), "sharded")(jacobians, residuals)

    cpu = nets.mesh(devices)
    accelerator = Accelerator(cpu.mesh) if devices > 1 else Accelerator()
    delta, expected = jnp.zeros((2, 3)), []
    for j in reversed(range(8)) if backward else range(8):
        delta = jnp.einsum("isk,si->sk", jacobians[j], delta) + residuals[j]
        expected.append(delta)
    expected = jnp.stack(expected[::-1] if backward else expected)
    assert nets.distance(run(cpu), expected) < 1e-13
    assert nets.distance(run(accelerator), expected) < 1e-13


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(coarsening_factor=0), "coarsening_factor=0 is too small"),
        (dict(jacobian="diagonal"), "jacobian='diagonal' is unknown; choose 'full' or 'channels'"),
        (dict(batch_axis=1.5), "batch_axis=1.5 is not an integer"),
        (dict(iterations=0), "iterations=0 is too small"),
        (dict(rtol=-1.0), "rtol=-1.0 is not a finite number >= 0"),
        (dict(rtol=None), "sequential_fallback=True needs a tolerance to fail at"),
        (dict(sequential_fallback=1), "sequential_fallback=1 is not True or False"),
        (dict(intervals_per_sweep=0), "intervals_per_sweep=0 is too small"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises((ValueError, TypeError), match=f"Newton: {message}"):
        jm.Newton(**options)


def test_states_and_steps_it_cannot_take_are_refused():
    theta = rec.inputs(8)
    with pytest.raises(ValueError, match="batch_axis=0 is out of range for a leaf of the state of shape"):
        solved(lambda x, u, h: u, theta, jnp.asarray(1.0), 1.0, jm.Newton(2))
    with pytest.raises(ValueError, match="differ in their number of samples"):
        solved(lambda x, u, h: u, theta, (jnp.zeros((2, 2)), jnp.zeros((3, 2))), 1.0, jm.Newton(2))

    problem, params, batch = nets.classification(16)
    trainer = jm.OneShot(problem, nets.recording(), jm.Newton(4), jm.Newton(4), jm.PredictThenSweep())
    with pytest.raises(ValueError, match=r"PredictThenSweep: solver=Newton.* has no coarse level"):
        trainer.init(params, batch)
