"""Layers spread over devices: everything the library computes is what one device computes, and really is spread."""

import functools

import jax
import jax.numpy as jnp
import networks as nets
import numpy as np
import optax
import pytest

import jaxmgrit as jm

FINAL_TIME = 5.0
AVERAGED_MIDPOINT = dict(coarse_params=jm.average, coarse_step=jm.midpoint)
SOLVERS = {
    "default": (jm.MGRIT(4), jm.MGRIT(4)),
    "three levels, FCF, F-cycle": (jm.MGRIT((4, 3), cf_relaxations=(1, 2), cycle="F", cycles=3, **AVERAGED_MIDPOINT),) * 2,
    "skipped, F-cycle": (jm.MGRIT(2, cycle="F", skip_first_down=True, cycles=3),) * 2,
    "tolerance": (jm.MGRIT(4, rtol=1e-8, cycles=40),) * 2,
    "different factors": (jm.MGRIT(4), jm.MGRIT(2)),
    "sequential": (jm.Sequential(), jm.Sequential()),
    "sequential state": (jm.Sequential(4), jm.MGRIT(4)),
    "sequential adjoint": (jm.MGRIT(4), jm.Sequential()),
}
QUICK = {(203, "default", 4), (64, "three levels, FCF, F-cycle", 8), (203, "different factors", 2)}
MATRIX = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in [(n, s, p) for n in (64, 203) for s in SOLVERS for p in (2, 4, 8)]
]


@functools.lru_cache
def everything(layers, solvers, devices):
    """All that can be asked of a state and an adjoint, running cost and one step size per layer included."""
    theta, u0 = nets.rough(layers), nets.state()
    h, backend = nets.steps_of_unequal_size(layers, FINAL_TIME), nets.mesh(devices)
    solver, adjoint = SOLVERS[solvers]
    sol, adj, gradients = nets.solved(
        nets.tanh_step, theta, u0, h, solver, adjoint, cost=nets.tanh_cost, backend=backend
    )
    found = {
        "final state": sol.u_final,
        "residual norms": sol.residual_norms,
        "cycles": sol.cycles,
        "result": sol.result,
        "initial adjoint": adj.lam_initial,
        "adjoint residual norms": adj.residual_norms,
        "adjoint cycles": adj.cycles,
        "adjoint result": adj.result,
        "gradients": gradients,
        "states": jm.trajectory(nets.tanh_step, theta, sol, h=h, backend=backend),
        "adjoints": jm.adjoint_trajectory(
            nets.tanh_step, theta, sol, adj, h=h, running_cost=nets.tanh_cost, backend=backend
        ),
    }
    return jax.tree.map(np.asarray, found)


def assert_same(found, expected):
    for name, value in expected.items():
        for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(value), strict=True):
            scale = np.max(np.abs(b), initial=0.0, where=np.isfinite(b))
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * scale, err_msg=name)


@pytest.mark.parametrize("layers, solvers, devices", MATRIX)
def test_state_adjoint_residuals_and_gradients_are_those_of_one_device(layers, solvers, devices):
    assert_same(everything(layers, solvers, devices), everything(layers, solvers, 1))


@pytest.mark.parametrize("layers, devices", [(203, 4), pytest.param(64, 8, marks=pytest.mark.slow)])
def test_the_gradient_of_propagate_is_that_of_scan(layers, devices):
    theta, u0 = nets.rough(layers), nets.state()
    h, backend = nets.steps_of_unequal_size(layers, FINAL_TIME), nets.mesh(devices)

    def run(way):
        def total(theta, u0, h, strength):
            def step(theta, u, h):
                return nets.tanh_step(theta, strength * u, h)

            return jnp.sum(jnp.sin(way(step, theta, u0, h)))

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3)))(theta, u0, h, 1.01)

    found = run(lambda step, theta, u0, h: jm.propagate(step, theta, u0, h=h, backend=backend))
    assert nets.distance(found, run(nets.scan)) < 1e-11


def test_propagate_under_vmap_over_devices_is_that_of_scan():
    theta, u0, backend = nets.rough(64), nets.state(), nets.mesh(4)

    def run(way):
        gradient = jax.grad(lambda u: jnp.sum(jnp.sin(way(u))))
        return jax.jit(jax.vmap(gradient))(jnp.stack([u0, -u0]))

    found = run(lambda u: jm.propagate(nets.tanh_step, theta, u, h=0.05, backend=backend))
    assert nets.distance(found, run(lambda u: nets.scan(nets.tanh_step, theta, u, 0.05))) < 1e-11


@pytest.mark.parametrize("layers, devices", [(64, 8), pytest.param(203, 4, marks=pytest.mark.slow)])
def test_two_cycles_and_two_more_are_four(layers, devices):
    theta, u0, backend = nets.rough(layers), nets.state(), nets.mesh(devices)

    def run(cycles, guess=None):
        solver = jm.MGRIT(4, cycles=cycles)
        return jm.solve(
            nets.tanh_step, theta, u0, h=FINAL_TIME / layers, solver=solver, guess=guess, backend=backend
        ).c_points

    assert nets.distance(run(2, run(2)), run(4)) < 1e-15


def trained(layers, devices, schedule, optimizer, iterations):
    """Parameters and losses of one-shot training."""
    problem, params, batch = nets.classification(layers)
    solver = jm.MGRIT(4, levels=3, cycles=1, **AVERAGED_MIDPOINT)
    trainer = jm.OneShot(problem, optimizer, solver, solver, schedule, nets.mesh(devices))
    state, update = trainer.init(params, batch), jax.jit(trainer.step, donate_argnums=0)
    infos = []
    for _ in range(iterations):
        state, info = update(state, batch)
        infos.append(info)
    return trainer, state, (trainer.params(state), jax.tree.map(lambda *x: np.array(x), *infos))


SCHEDULES = {"cycles, then gradient": jm.CyclesThenGradient(), "predict, then sweep": jm.PredictThenSweep()}
OPTIMIZERS = {
    "SGD": (optax.sgd(0.1), 1e-12),
    "Adam": (nets.promoting(optax.adam(1e-2)), 1e-10),
    "clipped, with weight decay": (
        optax.chain(optax.clip_by_global_norm(0.1), nets.promoting(optax.adamw(1e-2, weight_decay=0.1))),
        1e-10,
    ),
}
TRAINING_QUICK = {(203, "predict, then sweep", "SGD", 4), (203, "cycles, then gradient", "clipped, with weight decay", 4)}
TRAINING = [
    pytest.param(*case, marks=() if case in TRAINING_QUICK else pytest.mark.slow)
    for case in [
        (n, s, o, p)
        for s in SCHEDULES
        for n, o, p in [
            (64, "SGD", 2),
            (64, "SGD", 8),
            (203, "SGD", 4),
            (203, "Adam", 8),
            (203, "clipped, with weight decay", 4),
        ]
    ]
]


@functools.lru_cache
def trained_on_one_device(layers, schedule, optimizer):
    return trained(layers, 1, SCHEDULES[schedule], OPTIMIZERS[optimizer][0], 20)[2]


@pytest.mark.parametrize("layers, schedule, optimizer, devices", TRAINING)
def test_twenty_iterations_of_training_are_those_of_one_device(layers, schedule, optimizer, devices):
    rule, tolerance = OPTIMIZERS[optimizer]
    found = trained(layers, devices, SCHEDULES[schedule], rule, 20)[2]
    expected = trained_on_one_device(layers, schedule, optimizer)
    assert nets.distance(found[0], expected[0]) < tolerance
    for name, a, b in zip(expected[1]._fields, found[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=10 * tolerance * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_device_holds_its_share_of_layers_optimiser_and_warm_values(schedule):
    layers, devices = 64, 4
    adam = nets.promoting(optax.adam(1e-2))
    _, state, _ = trained(layers, devices, SCHEDULES[schedule], adam, 2)
    per_layer = [state.params.layers, state.optimizer[0].mu.layers, state.optimizer[0].nu.layers]
    for leaf in jax.tree.leaves(per_layer):
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {layers // devices}
        assert {shard.device for shard in leaf.addressable_shards} == set(jax.devices()[:devices])
    for leaf in jax.tree.leaves(state.warm):
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {layers // 4 // devices}


def test_every_device_holds_its_share_of_the_c_points():
    sol = jm.solve(nets.tanh_step, nets.rough(203), nets.state(), h=0.01, backend=nets.mesh(4))
    # 203 layers in intervals of 4 are 51 intervals: 13 a device.
    assert [shard.data.shape[0] for shard in sol.c_points.ends.addressable_shards] == [13] * 4


def test_the_layers_may_share_a_mesh_with_a_batch_axis():
    theta, u0 = nets.rough(64), nets.state(batch=4)
    auto = jax.sharding.AxisType.Auto
    grid = jax.make_mesh((4, 2), ("layers", "batch"), axis_types=(auto, auto))
    u0_spread = jax.device_put(u0, jax.sharding.NamedSharding(grid, jax.sharding.PartitionSpec("batch")))

    def run(u0, backend):
        def total(theta):
            return jnp.sum(jnp.sin(jm.propagate(nets.tanh_step, theta, u0, h=0.05, backend=backend)))

        return jax.jit(jax.value_and_grad(total))(theta)

    assert nets.distance(run(u0_spread, jm.Mesh(grid)), run(u0, jm.Local())) < 1e-12
