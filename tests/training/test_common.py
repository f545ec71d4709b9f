"""Shared parameters, a context and keys: one-shot training with many cycles is conventional training."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from helpers import networks as nets
from helpers.common import (
    BATCH,
    CONTEXT,
    EXACT,
    IN_PARTS,
    KEYS,
    LAYERS,
    LOCAL,
    MANY,
    PARAMS,
    TIED,
    conventionally,
    objective,
    one_shot,
    problem,
    published,
    step,
    trained,
)

import jaxmgrit as jm


@pytest.fixture(scope="module", autouse=True)
def _as_optax_wants_it():
    """Adam promotes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def everything():
    """The parameters after conventional training with all three."""
    return conventionally(PARAMS, CONTEXT, KEYS)


TWO_LEVELS = jm.MGRIT(2, levels=2, **MANY)
PICARD = {"levels": 2, "coarse_params": jm.all_layers, "coarse_step": jm.picard(1)}
LAST = {"coarse_params": lambda theta: jax.tree.map(lambda x: x[-1], theta)}
SOLVERS = {
    "injection, one device": (jm.MGRIT(2, **MANY), None),  # on three levels
    "all layers, two devices": (jm.MGRIT(4, **MANY, **PICARD), 2),
    "average and midpoint, two devices": (
        jm.MGRIT(2, levels=2, **MANY, coarse_params=jm.average, coarse_step=jm.midpoint),
        2,
    ),
    "coarse parameters of one's own": (jm.MGRIT(2, levels=2, **MANY, **LAST), None),
    "Newton": (jm.Newton(2, iterations=6), None),
    "sequential": (jm.Sequential(), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_many_cycles_are_conventional_training(name, everything):
    """The masks of state, adjoint and gradient agree with each other, and with those documented."""
    solver, devices = SOLVERS[name]
    trainer, state = trained(one_shot(solver, nets.mesh(devices) if devices else jm.Local()), PARAMS, CONTEXT, KEYS)
    assert nets.distance(trainer.params(state), everything) < 1e-10


@pytest.mark.slow
def test_other_masks_are_other_gradients():
    """What the tests above would see if a layer's key were another's in a cycle, the adjoint or the gradient."""
    own, other = (jax.grad(objective)(PARAMS, CONTEXT, KEYS[0], shift) for shift in (0, 1))
    assert nets.distance(own, other) > 1e-2


@pytest.fixture(scope="module")
def in_parts():
    """A trainer over two parts of the batch and two devices for the layers, trained with context and keys."""
    devices = jax.make_mesh((2, 2), ("data", "layers"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    trainer = one_shot(TWO_LEVELS, jm.Mesh(devices, data_axis="data"), layers=LAYERS)
    return trained(trainer, TIED, CONTEXT, KEYS)


@pytest.mark.slow
def test_parts_of_the_batch_have_their_part_of_the_context_and_keys_of_their_own(in_parts):
    """As documented, in state, adjoint and gradient: the key is folded with the part's number, then the layer's."""
    trainer, state = in_parts
    expected = conventionally(TIED, CONTEXT, KEYS, IN_PARTS)
    assert nets.distance(trainer.params(state), expected) < 1e-10
    # Masks do depend on the number of parts: a row's is another one where the batch is whole.
    assert nets.distance(conventionally(TIED, CONTEXT, KEYS), expected) > 1e-4
    # On to one device by a snapshot; evaluation too needs the context.
    alone = one_shot(TWO_LEVELS, LOCAL, layers=LAYERS)
    restored = alone.restore(alone.init(TIED, BATCH), trainer.export(state))
    assert nets.distance(alone.params(restored), expected) < 1e-10
    loss, _ = alone.evaluate(restored, BATCH, context=CONTEXT)
    np.testing.assert_allclose(alone.problem.evaluate(expected, BATCH, context=CONTEXT)[0], loss, rtol=1e-9)
    np.testing.assert_allclose(trainer.evaluate(state, BATCH, context=CONTEXT)[0], loss, rtol=1e-9)


@pytest.mark.slow
def test_no_evaluation_of_a_layer_has_a_key_of_its_own():
    """Relaxation, coarse levels, adjoint and gradient: every key that a step ever sees is one of those documented."""
    seen = set()

    def observed(theta, u, h, common):
        jax.debug.callback(lambda key: seen.add(tuple(np.asarray(key).tolist())), jax.random.key_data(common.key))
        return step(theta, u, h, common)

    devices = jax.make_mesh((2, 2), ("data", "layers"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    solver = jm.MGRIT(2, cf_relaxations=(1, 1), cycles=1)
    watched = dataclasses.replace(problem(layers=LAYERS), step=observed, running_cost=None)
    trainer = jm.OneShot(
        watched, optax.sgd(0.1), solver, solver, backend=jm.Mesh(devices, data_axis="data"), start="cold"
    )
    jax.block_until_ready(trainer.step(trainer.init(TIED, BATCH), BATCH, context=CONTEXT, key=KEYS[0]))
    jax.effects_barrier()
    fold = jax.random.fold_in
    keys = [jax.random.key_data(fold(fold(KEYS[0], part), n)) for part in range(2) for n in range(LAYERS)]
    assert seen == {tuple(np.asarray(key).tolist()) for key in keys} and len(seen) == 2 * LAYERS


def backtracked(params, context, keys):
    """Steepest descent with Armijo backtracking: parameters, and the trials of every line search."""
    trials = []
    for key in keys:
        value, gradient = EXACT(params, context, key)
        slope, step_size, count = nets.inner(gradient, gradient), 2.0, 0
        enough = False
        while not enough:
            moved = jax.tree.map(lambda x, g, a=step_size: x - a * g, params, gradient)
            enough = EXACT(moved, context, key)[0] <= value - 1e-4 * step_size * slope
            step_size, count = step_size / 2, count + 1
        params = moved
        trials.append(count)
    return params, trials


@pytest.mark.slow
@pytest.mark.parametrize("devices", [None, 2])
def test_the_published_loop_trains_with_context_and_keys(devices):
    """Gradient and trials of an iteration have the masks of its key, those documented."""
    trainer = published(TWO_LEVELS, jm.SteepestDescent(), nets.mesh(devices) if devices else jm.Local())
    state, update, trials = trainer.init(TIED, BATCH), jax.jit(trainer.step, donate_argnums=0), []
    for key in KEYS:
        state, info = update(state, BATCH, context=CONTEXT, key=key)
        trials.append(int(info.trials))
    expected, by_hand = backtracked(TIED, CONTEXT, KEYS)
    assert trials == by_hand and max(trials) > 1
    assert nets.distance(trainer.params(state), expected) < 1e-9
    assert update._cache_size() == 1 and not jax.tree.leaves(state.warm)
    loss, _ = trainer.evaluate(state, BATCH, context=CONTEXT)
    np.testing.assert_allclose(trainer.problem.evaluate(expected, BATCH, context=CONTEXT)[0], loss, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("hessian", [jm.LBFGS(), jm.BFGS()], ids=["L-BFGS", "BFGS"])
def test_quasi_newton_trains_what_is_shared(hessian):
    trainer = published(TWO_LEVELS, hessian, start="warm")
    state = trainer.init(TIED, BATCH)
    after, info = jax.jit(trainer.step)(state, BATCH)
    value, gradient = EXACT(TIED, None, None)
    np.testing.assert_allclose(info.objective, value, rtol=1e-10)
    np.testing.assert_allclose(info.grad_norm, optax.tree.norm(gradient), rtol=1e-8)
    moved = jax.tree.map(lambda x, g: x - info.step_size * g, TIED, gradient)
    assert nets.distance(trainer.params(after), moved) < 1e-8 and info.step_size > 0
