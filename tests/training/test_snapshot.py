"""A training state taken out and put back, on the same layout and on others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks as nets

import jaxmgrit as jm

SMOOTH = jm.MGRIT(4, levels=2, coarse_params=jm.average, coarse_step=jm.midpoint)
SCHEDULES = {
    "cycles": (jm.CyclesThenGradient(), jm.MGRIT(4, levels=2, cycles=1)),
    "predict": (jm.PredictThenSweep(), SMOOTH),
    "predict on three levels": (jm.PredictThenSweep(), jm.MGRIT(2, levels=3, coarse_params=jm.average)),
    "sequential": (jm.CyclesThenGradient(), jm.Sequential()),
}
ADAM = nets.promoting(optax.chain(jm.anticipate(0.1), optax.adam(1e-2)))
LBFGS = nets.promoting(optax.chain(optax.scale_by_lbfgs(memory_size=3), optax.sgd(1e-2)))


def trainer_of(schedule, devices, optimizer=ADAM):
    kind, solver = SCHEDULES[schedule]
    problem, params, batch = nets.classification(27)
    trainer = jm.OneShot(problem, optimizer, solver, solver, kind, nets.mesh(devices))
    return trainer, trainer.init(params, batch), batch


def run(trainer, state, batch, iterations):
    update, infos = jax.jit(trainer.step), []
    for _ in range(iterations):
        state, info = update(state, batch)
        infos.append(jax.device_get(info))
    return state, infos


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "devices", "optimizer"),
    [
        ("predict", 2, ADAM),
        ("cycles", 1, ADAM),
        ("cycles", 3, LBFGS),
        ("predict on three levels", 2, ADAM),
        ("sequential", 2, ADAM),
    ],
)
def test_a_restored_state_goes_on_bit_for_bit(schedule, devices, optimizer):
    trainer, fresh, batch = trainer_of(schedule, devices, optimizer)
    state, _ = run(trainer, fresh, batch, 4)
    snapshot = trainer.export(state)
    assert snapshot.iteration == 4
    assert snapshot.params.layers["w"].shape == (27, nets.WIDTH, nets.WIDTH)
    restored = trainer.restore(fresh, snapshot)
    assert [x.sharding for x in jax.tree.leaves(restored)] == [x.sharding for x in jax.tree.leaves(state)]
    for a, b in zip(*(leaves(run(trainer, start, batch, 4)[1]) for start in (state, restored)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["cycles", "predict"])
def test_another_number_of_devices_goes_on_up_to_rounding(schedule):
    one, fresh, batch = trainer_of(schedule, 1)
    state, _ = run(one, fresh, batch, 4)
    _, expected = run(one, state, batch, 4)
    other, fresh, batch = trainer_of(schedule, 4)
    _, actual = run(other, other.restore(fresh, one.export(state)), batch, 4)
    for a, b in zip(leaves(actual), leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13)


def test_exporting_what_was_restored_gives_the_same_and_shares_no_memory():
    trainer, fresh, _ = trainer_of("predict", 1)
    numbers = iter(range(1000))
    snapshot = jax.tree.map(lambda x: np.full_like(x, next(numbers)), trainer.export(fresh))
    restored = trainer.restore(fresh, snapshot)
    before = leaves(trainer.export(restored))
    for kept in jax.tree.leaves(snapshot):
        kept[...] = -1
    assert [x.ravel()[0] for x in before] == [x.dtype.type(i) for i, x in enumerate(before)]
    np.testing.assert_array_equal(leaves(trainer.export(restored))[0], before[0])


def test_key_leaves_come_back_as_keys():
    problem, params, batch = nets.classification(27)
    params = params._replace(opening={**params.opening, "key": jax.random.key(3)})
    trainer = jm.OneShot(problem, ADAM, SMOOTH, SMOOTH)
    state = trainer.init(params, batch)
    restored = trainer.restore(state, trainer.export(state))
    assert jnp.array_equal(restored.params.opening["key"], jax.random.key(3))


def test_a_snapshot_of_another_network_is_refused():
    trainer, fresh, _ = trainer_of("predict", 1)
    snapshot = trainer.export(fresh)
    shorter = jax.tree.map(lambda x: x[:-1], snapshot.params.layers)
    with pytest.raises(ValueError, match=r"snapshot\.params does not fit this trainer: expected .*27.*given .*26"):
        trainer.restore(fresh, snapshot._replace(params=snapshot.params._replace(layers=shorter)))
    with pytest.raises(ValueError, match=r"snapshot\.warm does not fit"):
        trainer.restore(fresh, snapshot._replace(warm=(None,) * 4))


def test_warm_values_of_padding_are_left_out_where_the_padding_is():
    trainer, state, _ = trainer_of("cycles", 3)  # 7 intervals of 4 layers in 9: state padded behind, adjoint in front
    numbered = jax.tree.map(
        lambda x: x * 0 + jnp.arange(x.shape[0], dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1)), state.warm
    )
    exported = trainer.export(dataclasses.replace(state, warm=numbered)).warm
    for ends, begin in zip(exported, (0, 2), strict=True):
        (leaf,) = jax.tree.leaves(ends)
        np.testing.assert_array_equal(leaf[:, 0, 0], np.arange(begin, begin + 7))
