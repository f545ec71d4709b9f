"""Mini-batches: warm values by sample are those of fixed batches, and a cold start is that of a new training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks as nets

import jaxmgrit as jm

ADAM = nets.promoting(optax.adam(1e-2))
CASES = {
    "cycles, then gradient": (jm.CyclesThenGradient(), jm.MGRIT(4, levels=2, cycles=1)),
    "predict, then sweep": (
        jm.PredictThenSweep(),
        jm.MGRIT(4, levels=2, cycles=1, coarse_params=jm.average, coarse_step=jm.midpoint),
    ),
}
SAMPLES = 12
both_schedules = pytest.mark.parametrize("schedule", nets.slow_but(["predict, then sweep"], CASES))
devices = pytest.mark.parametrize("devices", nets.slow_but([1], [1, 4]))


def setting(schedule, devices=1):
    problem, params, batch = nets.classification(64)
    rule, solver = CASES[schedule]
    return jm.OneShot(problem, ADAM, solver, solver, rule, nets.mesh(devices)), params, batch


def some(batch, samples):
    return jax.tree.map(lambda x: x[samples], batch)


@both_schedules
@devices
def test_all_samples_in_another_order_are_the_fixed_batch(schedule, devices):
    trainer, params, batch = setting(schedule, devices)
    fixed, mixed = trainer.init(params, batch), trainer.init(params, batch)
    update = jax.jit(trainer.step)
    orders = np.random.default_rng(0)
    for _ in range(5):
        order = jnp.asarray(orders.permutation(SAMPLES))
        fixed, expected = update(fixed, batch)
        mixed, info = update(mixed, some(batch, order), order)
        np.testing.assert_allclose(info.residual_norm, expected.residual_norm, rtol=1e-9)
        np.testing.assert_allclose(info.adjoint_residual_norm, expected.adjoint_residual_norm, rtol=1e-9)
        assert nets.distance(mixed, fixed) < 1e-10


@pytest.mark.slow
@both_schedules
def test_each_half_keeps_warm_values_of_its_own(schedule):
    """Two halves in turn, out of one state, against one training that swaps the warm values of two fixed batches."""
    trainer, params, batch = setting(schedule)
    order = np.random.default_rng(1).permutation(SAMPLES)
    halves = [jnp.asarray(np.sort(order[:6])), jnp.asarray(np.sort(order[6:]))]
    update = jax.jit(trainer.step)
    state = trainer.init(params, batch)
    swapped = trainer.init(params, some(batch, halves[0]))
    warm = [trainer.init(params, some(batch, half)).warm for half in halves]
    for iteration in range(6):
        one = iteration % 2
        state, info = update(state, some(batch, halves[one]), halves[one])
        swapped, expected = update(dataclasses.replace(swapped, warm=warm[one]), some(batch, halves[one]))
        warm[one] = swapped.warm
        np.testing.assert_allclose(info.grad_norm, expected.grad_norm, rtol=1e-9)
        assert nets.distance(trainer.params(state), trainer.params(swapped)) < 1e-10
    assert nets.distance(jax.tree.map(lambda x: x[:, halves[1]], state.warm), warm[1]) < 1e-10


@both_schedules
@devices
def test_a_cold_start_is_that_of_a_new_training(schedule, devices):
    trainer, params, batch = setting(schedule, devices)
    first, second = (some(batch, slice(a, a + 5)) for a in (0, 5))
    state, _ = jax.jit(trainer.step)(trainer.init(params, first), first)
    cold = jax.jit(trainer.cold)(state, second)
    anew = trainer.init(trainer.params(state), second)
    assert nets.distance(cold.warm, anew.warm) < 1e-12
    assert nets.distance((cold.params, cold.optimizer), (state.params, state.optimizer)) == 0
    assert int(cold.iteration) == 1


@pytest.mark.slow
def test_a_cold_start_every_time_is_conventional_training_where_cycles_are_many():
    problem, params, batch = nets.classification(37)
    converged = jm.MGRIT(4, cycles=30, rtol=0.0)
    trainer = jm.OneShot(problem, ADAM, converged, converged)
    update = jax.jit(lambda state, batch: trainer.step(trainer.cold(state, batch), batch), donate_argnums=0)
    exact = jm.OneShot(problem, ADAM, jm.Sequential(), jm.Sequential())
    other = jax.jit(exact.step)
    state, expected = (t.init(params, some(batch, slice(0, 4))) for t in (trainer, exact))
    for iteration in range(6):
        part = some(batch, slice(4 * (iteration % 3), 4 * (iteration % 3) + 4))
        state, _ = update(state, part)
        expected, _ = other(expected, part)
    assert nets.distance(trainer.params(state), exact.params(expected)) < 1e-9
    assert update._cache_size() == 1


@both_schedules
def test_samples_that_do_not_exist_or_do_not_fit(schedule):
    trainer, params, batch = setting(schedule)
    state = trainer.init(params, batch)
    few = some(batch, slice(0, 2))
    for samples in ([0, SAMPLES], [-1, 0]):
        _, info = jax.jit(trainer.step)(state, few, jnp.asarray(samples))
        with pytest.raises(jm.SolveError, match="not finite"):
            jm.check(info.result)
    with pytest.raises(ValueError, match="the batch gives states"):
        trainer.step(state, few, jnp.asarray([0, 1, 2]))
