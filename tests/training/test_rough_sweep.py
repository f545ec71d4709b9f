"""One-shot training with a coarse level of all layers: exact where it stands still; the moving tau of cold batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks as nets

import jaxmgrit as jm


def rough(sweeps, factor=4, inner_values=False, **options):
    step = jm.picard(sweeps, inner_values=inner_values)
    return jm.MGRIT(
        factor, **{"levels": 2, "cycles": 1, "coarse_params": jm.all_layers, "coarse_step": step, **options}
    )


def general(layers):
    h = nets.steps_of_unequal_size(layers, 5.0)
    return nets.classification(layers, initial=nets.rough, running_cost=nets.tanh_cost, h=h)


def gradients(problem, params, batch, solver, schedule, iterations, devices=1):
    """The gradient at unchanged parameters after some iterations, and the residual norms."""
    trainer = jm.OneShot(problem, nets.recording(), solver, solver, schedule, nets.mesh(devices))
    state, update = trainer.init(params, batch), jax.jit(trainer.step)
    infos = []
    for _ in range(iterations):
        state, info = update(state, batch)
        infos.append(float(info.residual_norm + info.adjoint_residual_norm))
    layers = jax.tree.map(lambda x: x[: jax.tree.leaves(params.layers)[0].shape[0]], state.optimizer.layers)
    return state.optimizer._replace(layers=layers), infos


@pytest.mark.parametrize(
    "layers, solver, devices",
    nets.slow_but(
        [(18, rough(2, inner_values=True), 1)],
        [
            (18, rough(2, inner_values=True), 1),
            (18, rough(2, inner_values=True, exact_first=1), 4),
            (18, rough(0), 1),
            (18, rough(0, inner_values=True, exact_first=100), 1),
            (16, rough(1, exact_first=2), 2),
            (35, rough(2, 2, levels=3, cycles=4), 1),
            (35, rough(2, 2, levels=3, cycles=4, inner_values=True), 4),
        ],
    ),
)
def test_at_unchanged_parameters_the_gradient_becomes_the_exact_one(layers, solver, devices):
    problem, params, batch = general(layers)
    actual, norms = gradients(problem, params, batch, solver, jm.PredictThenSweep(), 24, devices)
    expected = jax.grad(lambda p: nets.exact_objective(problem, p, batch))(params)
    assert nets.distance(actual, expected) < 1e-9
    assert norms[-1] < 1e-9 * norms[0]


def test_the_mismatch_is_the_residual_over_the_norm_of_the_c_points():
    """Of layers that multiply by 1.25: four of them make 1.25^4, one Picard sweep 2, of states and adjoints alike."""
    problem = jm.Problem(lambda p, x: x, lambda t, u, h: u + h * t * u, lambda p, u, y: (jnp.sum(u), None), h=0.25)
    params, batch = jm.Params((), jnp.ones((16,)), ()), (jnp.ones((3, 2)), jnp.zeros(3))
    infos, ends = [], []
    for schedule in (jm.PredictThenSweep(), jm.CyclesThenGradient()):
        trainer = jm.OneShot(problem, optax.sgd(0.0), rough(1), rough(1), schedule)
        state, info = jax.jit(trainer.step)(trainer.init(params, batch), batch)
        infos.append(info)
        ends.append([jnp.linalg.norm(jnp.ravel(x)) for x in state.warm[:2]])
    np.testing.assert_allclose(infos[0].mismatch, (1.25**4 - 2) / 1.25**4, rtol=1e-12)
    relative = infos[1].residual_norm / ends[1][0], infos[1].adjoint_residual_norm / ends[1][1]
    np.testing.assert_allclose(infos[1].mismatch, max(relative), rtol=1e-12)


@pytest.mark.parametrize("inner_values", nets.slow_but([True], [False, True]))
def test_as_many_sweeps_as_layers_give_the_exact_gradient_at_once(inner_values):
    problem, params, batch = general(18)
    # A running cost is known to the adjoint's coarse level only from the first sweep on.
    problem = dataclasses.replace(problem, running_cost=None)
    actual, _ = gradients(problem, params, batch, rough(4, inner_values=inner_values), jm.PredictThenSweep(), 1)
    assert nets.distance(actual, jax.grad(lambda p: nets.exact_objective(problem, p, batch))(params)) < 1e-12


@pytest.mark.parametrize("inner_values", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("layers", [18, pytest.param(35, marks=pytest.mark.slow)])
def test_adjoint_cycles_on_inner_values_converge_to_the_adjoint_of_scan(layers, inner_values):
    problem, params, batch = general(layers)
    solver = rough(2, inner_values=inner_values, cycles=6)
    actual, _ = gradients(problem, params, batch, solver, jm.CyclesThenGradient(), 2)
    assert nets.distance(actual, jax.grad(lambda p: nets.exact_objective(problem, p, batch))(params)) < 1e-10


def exact_losses(problem, params, batch, solver, schedule, iterations):
    trainer = jm.OneShot(problem, nets.promoting(optax.adam(1e-2)), solver, solver, schedule)
    state, update = trainer.init(params, batch), jax.jit(trainer.step, donate_argnums=0)
    for _ in range(iterations):
        state, _ = update(state, batch)
    return float(problem.evaluate(trainer.params(state), batch)[0])


@pytest.mark.slow
def test_training_on_independent_layers_is_that_of_sequential_where_injection_fails():
    problem, params, batch = nets.classification(128, initial=nets.rough, batch=60, total=20.0)
    sequential = exact_losses(problem, params, batch, jm.Sequential(), jm.CyclesThenGradient(), 60)
    picard = exact_losses(problem, params, batch, rough(3, 8), jm.PredictThenSweep(), 60)
    injection = exact_losses(problem, params, batch, jm.MGRIT(8, levels=2, cycles=1), jm.PredictThenSweep(), 60)
    assert picard < 1.05 * sequential
    assert injection > 1.5 * sequential


@pytest.mark.slow
def test_the_published_loop_takes_it():
    problem, params, batch = nets.classification(18, initial=nets.rough)
    losses = []
    for solver in (rough(4), jm.Sequential()):
        trainer = jm.PublishedLoop(problem, solver=solver, adjoint=solver)
        state, update = trainer.init(params, batch), jax.jit(trainer.step)
        for _ in range(3):
            state, info = update(state, batch)
        losses.append(float(info.objective))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-10)


# --- cold batches ----------------------------------------------------------------------------------------------------


def some(batch, count):
    return jax.tree.map(lambda x: x[:count], batch)


@pytest.mark.slow
def test_a_moving_tau_averages_the_batch_and_goes_on_from_batch_to_batch():
    """One interval step by hand: tau <- beta tau + (1 - beta) mean over samples of Psi(U) - G(U)."""
    beta = 0.75
    problem, params, batch = nets.classification(18, initial=nets.rough)
    trainer = jm.OneShot(problem, optax.sgd(0.0), rough(1), rough(1), jm.PredictThenSweep(moving_average=beta))
    state = trainer.init(params, batch)
    update = jax.jit(lambda state, batch: trainer.step(trainer.cold(state, batch), batch)[0])
    expected = np.zeros((5, nets.WIDTH))
    for size in (12, 7, 12):
        own = some(batch, size)
        state = update(state, own)
        u = problem.opening(params.opening, own[0])
        for j in range(5):
            layers = jax.tree.map(lambda x, j=j: x[4 * j : 4 * j + 4], params.layers)
            m = layers["w"].shape[0]
            exact = nets.scan(problem.step, layers, u, problem.h)
            coarse = jm.picard(1)(problem.step, layers, u, jnp.full((m,), problem.h), m)
            before = expected[j].copy()
            expected[j] = beta * before + (1 - beta) * np.mean(np.asarray(exact - coarse), axis=0)
            u = coarse + before[None]
        tau, sigma = state.warm[:2]
        assert tau.shape == (5, size, nets.WIDTH) and float(jnp.max(jnp.abs(sigma))) == 0
        np.testing.assert_allclose(tau, np.broadcast_to(expected[:, None], tau.shape), atol=1e-14)


def test_without_a_moving_average_a_cold_start_forgets():
    problem, params, batch = nets.classification(18, initial=nets.rough)
    trainer = jm.OneShot(problem, optax.sgd(0.0), rough(1), rough(1), jm.PredictThenSweep())
    state, _ = jax.jit(trainer.step)(trainer.init(params, batch), batch)
    assert all(float(jnp.max(jnp.abs(x))) > 0 for x in state.warm[:2])
    assert all(float(jnp.max(jnp.abs(x))) == 0 for x in trainer.cold(state, batch).warm[:2])


@pytest.mark.parametrize(
    "value, kind", [(1.0, ValueError), (-0.1, ValueError), (float("nan"), ValueError), ("0.8", TypeError)]
)
def test_a_moving_average_out_of_range_is_refused(value, kind):
    with pytest.raises(kind, match="PredictThenSweep: moving_average="):
        jm.PredictThenSweep(moving_average=value)


def test_a_choice_of_inner_values_that_is_no_truth_value_is_refused():
    with pytest.raises(TypeError, match="picard: inner_values=1 is not True or False"):
        jm.picard(2, inner_values=1)
