"""Layers spread over devices: everything the library computes is what one device computes, and really is spread."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks as nets

import jaxmgrit as jm
from jaxmgrit.backend.base import shift_blocks

FINAL_TIME = 5.0
AVERAGED_MIDPOINT = dict(coarse_params=jm.average, coarse_step=jm.midpoint)
FCF = jm.MGRIT((4, 3), cf_relaxations=(1, 2), cycle="F", cycles=3, **AVERAGED_MIDPOINT)
SKIPPED = jm.MGRIT(2, levels=4, cycle="F", skip_first_down=True, cycles=3)
TOLERANCE = jm.MGRIT(4, rtol=1e-8, cycles=40)
# Of the state and of the adjoint.
SOLVERS = {
    "default": (jm.MGRIT(4), jm.MGRIT(4)),
    "three levels, FCF, F-cycle": (FCF, FCF),
    "skipped, F-cycle": (SKIPPED, SKIPPED),
    "tolerance": (TOLERANCE, TOLERANCE),
    "different factors": (jm.MGRIT(4), jm.MGRIT(2)),
    "sequential": (jm.Sequential(), jm.Sequential()),
    "sequential state": (jm.Sequential(4), jm.MGRIT(4)),
    "sequential adjoint": (jm.MGRIT(4), jm.Sequential()),
}
# Layers that do not divide by any number of devices, which leaves padding, and for some solvers also some that do.
EVEN = ["default", "three levels, FCF, F-cycle", "different factors"]
MATRIX = [(203, "default", 2)] + [(203, s, 4) for s in SOLVERS] + [(64, s, 8) for s in EVEN]


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


@pytest.mark.slow
@pytest.mark.parametrize("layers, solvers, devices", MATRIX)
def test_state_adjoint_residuals_and_gradients_are_those_of_one_device(layers, solvers, devices):
    assert_same(everything(layers, solvers, devices), everything(layers, solvers, 1))


@pytest.mark.slow
def test_the_gradient_of_propagate_is_that_of_scan():
    layers, devices = 203, 4
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


@pytest.mark.slow
def test_propagate_under_vmap_over_devices_is_that_of_scan():
    theta, u0, backend = nets.rough(64), nets.state(), nets.mesh(4)

    def run(way):
        gradient = jax.grad(lambda u: jnp.sum(jnp.sin(way(u))))
        return jax.jit(jax.vmap(gradient))(jnp.stack([u0, -u0]))

    found = run(lambda u: jm.propagate(nets.tanh_step, theta, u, h=0.05, backend=backend))
    assert nets.distance(found, run(lambda u: nets.scan(nets.tanh_step, theta, u, 0.05))) < 1e-11


def kicked(theta, u, h):
    """A step with integer and key leaves, and with roots, whose derivatives zeros in the padding would spoil."""
    kick = 0.01 * nets.keyed(theta["key"]) * (theta["kind"] % 2).astype(u.dtype)
    return u + h * jnp.sqrt(theta["s"]) * jnp.sqrt(u) + kick


@pytest.mark.slow
def test_whole_intervals_of_padding_spoil_neither_keys_nor_roots():
    # 67 layers are 17 intervals of 4: 3 on each of 8 devices, 7 intervals of padding.
    layers, u0 = 67, jnp.asarray([[1.0, 2.0]])
    theta = {
        "s": jnp.linspace(1.0, 2.0, layers),
        "kind": jnp.arange(layers),
        "key": jax.random.split(jax.random.key(0), layers),
    }
    solver = jm.MGRIT(4, cycles=20, rtol=0.0)
    sol, adj, gradients = nets.solved(kicked, theta, u0, 1.0 / layers, solver, backend=nets.mesh(8))
    u_final, pull = jax.vjp(lambda s, u: nets.scan(kicked, {**theta, "s": s}, u, 1.0 / layers), theta["s"], u0)
    d_s, lam0 = pull(0.5 * u_final)
    assert nets.distance((sol.u_final, adj.lam_initial, gradients["s"]), (u_final, lam0, d_s)) < 1e-12
    assert gradients["key"].dtype == jax.dtypes.float0


@pytest.mark.slow
def test_two_cycles_and_two_more_are_four():
    layers, devices = 203, 4
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
RUNS = [(64, "SGD", 8), (203, "Adam", 2), (203, "clipped, with weight decay", 4)]
TRAINING = [("predict, then sweep", 203, "SGD", 4), *((schedule, *run) for schedule in SCHEDULES for run in RUNS)]


@functools.lru_cache
def trained_on_one_device(layers, schedule, optimizer):
    return trained(layers, 1, SCHEDULES[schedule], OPTIMIZERS[optimizer][0], 20)[2]


@pytest.mark.slow
@pytest.mark.parametrize("schedule, layers, optimizer, devices", TRAINING)
def test_twenty_iterations_of_training_are_those_of_one_device(schedule, layers, optimizer, devices):
    rule, tolerance = OPTIMIZERS[optimizer]
    found = trained(layers, devices, SCHEDULES[schedule], rule, 20)[2]
    expected = trained_on_one_device(layers, schedule, optimizer)
    assert nets.distance(found[0], expected[0]) < tolerance
    for name, a, b in zip(expected[1]._fields, found[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=10 * tolerance * np.abs(b).max(), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_training_carries_integer_and_key_leaves_over_devices(schedule):
    layers = 67
    fixed = {"kind": jnp.arange(layers), "key": jax.random.split(jax.random.key(1), layers)}
    solver = jm.MGRIT(4, cycles=1)
    traces = []

    def step(theta, u, h):
        traces.append(None)
        kick = h * nets.keyed(theta["key"]) * (theta["kind"] % 2).astype(u.dtype)
        return nets.tanh_step(theta, u, h) + kick

    problem, params, batch = nets.classification(layers)
    problem = dataclasses.replace(problem, step=step)
    params = params._replace(layers={**params.layers, **fixed})
    found = []
    for devices in (1, 8):
        trainer = jm.OneShot(problem, optax.sgd(0.1), solver, solver, SCHEDULES[schedule], nets.mesh(devices))
        state, update = trainer.init(params, batch), jax.jit(trainer.step)
        state, _ = update(state, batch)
        traces.clear()
        for _ in range(2):
            state, _ = update(state, batch)
        assert not traces
        found.append(trainer.params(state))
        assert (found[-1].layers["kind"] == fixed["kind"]).all()
        assert (found[-1].layers["key"] == fixed["key"]).all()
    assert nets.distance(*({"w": p.layers["w"], "opening": p.opening} for p in found)) < 1e-12


@pytest.mark.parametrize("schedule", nets.slow_but(["predict, then sweep"], SCHEDULES))
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


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_shift_moves_entries_cyclically_or_puts_the_fill_where_one_left(devices):
    backend, x, far = nets.mesh(devices), jnp.arange(16.0), (-9, -1, 0, 1, 3, 16, 17)

    def inside(x, fill):
        return [backend.shift(x, by, None) for by in far], [backend.shift(x, by, fill) for by in (-1, 1)]

    cyclic, filled = backend.lift(inside, ("sharded", "replicated"), "sharded")(x, jnp.asarray(-1.0))
    for by, moved in zip(far, cyclic, strict=True):
        np.testing.assert_array_equal(moved, np.roll(x, by), err_msg=f"by {by}")
    np.testing.assert_array_equal(filled[0], [*range(1, 16), -1.0])
    np.testing.assert_array_equal(filled[1], [-1.0, *range(15)])


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_what_enters_a_device_is_what_arrives_at_it_so_that_no_sweep_is_begun_before_the_message(index, by):
    block, fill, sent = jnp.arange(3.0), jnp.asarray(-1.0), []

    def permute(x, hop):
        sent.append(float(x[0]))
        return jnp.full_like(x, 7.0)

    moved = shift_blocks(block, by, fill, index, 3, permute)
    assert moved[0 if by == 1 else -1] == 7.0
    last = index == (2 if by == 1 else 0)
    assert sent == [-1.0 if last else float(block[-1 if by == 1 else 0])]


@pytest.mark.slow
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
