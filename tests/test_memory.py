"""How much memory gradients need, as the compiler tells: C-points, and what one batched sweep keeps; not all states."""

import jax
import networks as nets
import optax
import pytest

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
    # State and adjoint have C-points, values to start from, and values arrived at; a layer keeps its state.
    assert temporary <= 1.1 * (6.5 * LAYERS / factor + intervals * factor)
    plain = memory(jax.grad(lambda p: nets.exact_objective(problem, p, batch)), params)[1]
    assert whole <= plain / 3
