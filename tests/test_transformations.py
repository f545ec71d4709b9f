"""Transformations of JAX around solves by named solvers: what a plain scan gives, or a refusal that says why."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks as nets
from jax import export

import jaxmgrit as jm

THETA, U0, H = nets.rough(10), nets.state(batch=4), 0.1
CYCLES = jm.MGRIT(4, levels=2, cycles=3)
WAYS = {"multigrid": dict(solver=CYCLES, adjoint=CYCLES), "newton": dict(solver=jm.Newton(4)), "default": {}}
with_ways = pytest.mark.parametrize("way", nets.slow_but(["multigrid"], WAYS))


def propagated(way):
    return lambda step, theta, u0: jm.propagate(step, theta, u0, h=H, **WAYS[way])


def scanned(step, theta, u0):
    return nets.scan(step, theta, u0, H)


def value_and_gradients(propagate, step=nets.tanh_step):
    return jax.jit(jax.value_and_grad(lambda theta, u0: jnp.sum(jnp.sin(propagate(step, theta, u0))), argnums=(0, 1)))


def for_any_batch(way):
    (batch,) = export.symbolic_shape("batch")
    theta = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), THETA)
    return export.export(value_and_gradients(propagated(way)))(theta, jax.ShapeDtypeStruct((batch, 4), U0.dtype))


@pytest.mark.parametrize("way", nets.slow_but(["multigrid"], ["multigrid", "default"]))
def test_a_program_exported_for_any_batch_gives_value_and_gradients(way):
    exported = for_any_batch(way)
    for u0 in (U0, U0[:3]):
        assert nets.distance(exported.call(THETA, u0), value_and_gradients(scanned)(THETA, u0)) < 1e-12


def test_newton_must_know_the_number_of_samples():
    with pytest.raises(ValueError, match=r"Newton: the state's leaves have shapes \(batch, 4\).*export with numbers"):
        for_any_batch("newton")


@with_ways
def test_nothing_is_nan_on_the_way_where_jax_looks_for_it(way):
    with jax.debug_nans(True):
        actual = value_and_gradients(propagated(way))(THETA, U0)
    assert nets.distance(actual, value_and_gradients(scanned)(THETA, U0)) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [jm.CyclesThenGradient(), jm.PredictThenSweep(), None], ids=str)
def test_nothing_is_nan_on_the_way_of_a_training_step(schedule):
    problem, params, batch = nets.classification(10)
    trainer = jm.PublishedLoop(problem)
    if schedule is not None:
        solver = jm.MGRIT(4, levels=2)
        trainer = jm.OneShot(problem, nets.promoting(optax.adam(1e-2)), solver, solver, schedule)
    state, update = trainer.init(params, batch), jax.jit(trainer.step)
    with jax.debug_nans(True):
        for _ in range(2):
            state, info = update(state, batch)
    assert np.isfinite(info.objective)


@pytest.mark.parametrize("way", nets.slow_but(["default"], ["multigrid", "default"]))
def test_reverse_over_reverse_is_that_of_a_scan(way):
    def twice(propagate):
        def squared(u0):
            return jnp.sum(jax.grad(lambda u: jnp.sum(jnp.sin(propagate(nets.tanh_step, THETA, u))))(u0) ** 2)

        return jax.jit(jax.grad(squared))(U0)

    assert nets.distance(twice(propagated(way)), twice(scanned)) < 1e-12


def normalised(theta, u, h):
    """A layer with a mean over the axis of the user's vmap."""
    return nets.tanh_step(theta, u - jax.lax.pmean(u, "batch"), h)


def mapped(propagate):
    return lambda step, theta, u0: jax.vmap(lambda u: propagate(step, theta, u), axis_name="batch")(u0[:, None])


def test_a_mean_over_an_axis_of_the_users_vmap_is_that_of_a_scan():
    expected = value_and_gradients(mapped(scanned), normalised)(THETA, U0)
    assert nets.distance(value_and_gradients(mapped(propagated("default")), normalised)(THETA, U0), expected) < 1e-12
    value = mapped(propagated("multigrid"))(normalised, THETA, U0)
    assert nets.distance(value, mapped(scanned)(normalised, THETA, U0)) < 1e-12


@pytest.mark.parametrize("way", nets.slow_but(["multigrid"], ["multigrid", "newton"]))
def test_its_gradient_by_a_named_solver_is_refused_by_name(way):
    with pytest.raises(NameError, match=r"(?s)propagate: .*axis.* differentiate inside the vmap"):
        value_and_gradients(mapped(propagated(way)), normalised)(THETA, U0)
