"""How much memory gradients need, as the compiler tells: C-points, and what one batched sweep keeps; not all states."""

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import networks as nets

import jaxmgrit as jm

LAYERS, BATCH = 512, 4000
STATE = BATCH * nets.WIDTH * 8
SMOOTH = dict(coarse_params=jm.average, coarse_step=jm.midpoint)


def memory(f, *args):
    """States that a compiled function needs beside its arguments and results, and with them; the first is donated."""
    sizes = jax.jit(f, donate_argnums=0).lower(*args).compile().memory_analysis()
    own = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.temp_size_in_bytes / STATE, (own + sizes.temp_size_in_bytes) / STATE


@pytest.mark.slow
@pytest.mark.parametrize("intervals", [1, 4])
@pytest.mark.parametrize("factor", [16, 32])
def test_an_iteration_keeps_c_points_and_the_layers_of_one_sweep_and_not_all_states(factor, intervals):
    solver = jm.MGRIT(factor, levels=2, intervals_per_sweep=intervals, **SMOOTH)
    problem, params, batch = nets.classification(LAYERS, batch=BATCH)
    trainer = jm.OneShot(problem, optax.sgd(0.1), solver, solver, jm.PredictThenSweep())
    temporary, whole = memory(trainer.step, trainer.init(params, batch), batch)
    # State and adjoint have C-points, and with several intervals at a time copies of what those start from.
    assert temporary <= 1.1 * ((4 if intervals == 1 else 6.5) * LAYERS / factor + intervals * factor)
    plain = memory(jax.grad(lambda p: nets.exact_objective(problem, p, batch)), params)[1]
    assert whole <= plain / 3


@pytest.mark.slow
@pytest.mark.parametrize("factor", [16, 64])
def test_a_gradient_of_4096_layers_needs_its_c_points_and_one_interval(factor):
    layers, state = 4096, jax.ShapeDtypeStruct((8, 5000), "float32")
    theta = {"w": jax.ShapeDtypeStruct((layers, 8, 8), "float32"), "b": jax.ShapeDtypeStruct((layers, 8), "float32")}

    def step(theta, u, h):
        return u + h * jnp.tanh(theta["w"].T @ u + theta["b"][:, None])

    def gradient(propagate):
        return jax.grad(lambda theta, u0: jnp.mean(propagate(theta, u0) ** 2))

    def scanned(theta, u0):
        return jax.lax.scan(lambda u, t: (step(t, u, 5 / layers), None), u0, theta)[0]

    solver = jm.MGRIT(factor, levels=2, cycles=2, **SMOOTH)
    ours, plain = (
        jax.jit(gradient(f)).lower(theta, state).compile().memory_analysis().temp_size_in_bytes / (4 * state.size)
        for f in (lambda t, u: jm.propagate(step, t, u, h=5 / layers, solver=solver, adjoint=solver), scanned)
    )
    assert ours <= 1.1 * (3 * layers / factor + factor)
    assert ours <= plain / 8
