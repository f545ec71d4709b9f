"""The batch spread over a second axis of devices: everything is what one device with the whole batch computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks as nets

import jaxmgrit as jm

BATCH, FINAL_TIME = 12, 5.0
GRIDS = [(2, 4), (4, 2), (2, 1)]  # parts of the batch, devices of the layers
LOCAL = (0, 0)  # no mesh


def grid(data, layers):
    """A backend of so many parts of the batch times so many devices for the layers."""
    if (data, layers) == LOCAL:
        return jm.Local()
    auto = jax.sharding.AxisType.Auto
    devices = jax.devices()[: data * layers]
    mesh = jax.make_mesh((data, layers), ("data", "layers"), axis_types=(auto, auto), devices=devices)
    return jm.Mesh(mesh, data_axis="data")


def mean_cost(theta, u, h):
    """A running cost as a data axis wants it: a mean over the samples, and what does not depend on them."""
    return h * (jnp.mean(jnp.sum(u * u, axis=1)) + jnp.sum(theta["w"] ** 2 * theta["b"][:, None]))


SOLVERS = {
    "F-cycle": jm.MGRIT((4, 3), cf_relaxations=(0, 1), cycle="F", cycles=3),
    "tolerance": jm.MGRIT(4, rtol=1e-8, cycles=40),
    "sequential": jm.Sequential(),
}


@functools.lru_cache
def everything(layers, solver, data, devices):
    theta, u0 = nets.rough(layers), nets.state(batch=BATCH)
    h, backend = nets.steps_of_unequal_size(layers, FINAL_TIME), grid(data, devices)
    chosen = SOLVERS[solver]
    sol, adj, gradients = nets.solved(nets.tanh_step, theta, u0, h, chosen, chosen, cost=mean_cost, backend=backend)
    rest = dict(h=h, backend=backend)
    return {
        "final state": sol.u_final,
        "initial adjoint": adj.lam_initial,
        # NaN after stopping, where `cycles` below tells that both stopped.
        "residual norms": jax.tree.map(jnp.nan_to_num, (sol.residual_norms, adj.residual_norms)),
        "cycles and results": (sol.cycles, adj.cycles, sol.result, adj.result),
        "gradients": gradients,
        "states": jm.trajectory(nets.tanh_step, theta, sol, **rest),
        "adjoints": jm.adjoint_trajectory(nets.tanh_step, theta, sol, adj, running_cost=mean_cost, **rest),
    }


@pytest.mark.parametrize(
    "layers, solver, shape",
    nets.slow_but(
        [(64, "sequential", (2, 2))],
        [(203, "F-cycle", shape) for shape in GRIDS]
        + [(64, "tolerance", (2, 2)), (64, "sequential", (2, 2)), (64, "sequential", (1, 1))],
    ),
)
def test_solves_are_those_of_one_device(layers, solver, shape):
    found, expected = everything(layers, solver, *shape), everything(layers, solver, *LOCAL)
    for name, value in expected.items():
        assert nets.distance(found[name], value) < 1e-12, name


@pytest.mark.slow
def test_the_gradient_of_propagate_is_that_of_scan():
    theta, u0 = nets.rough(53), nets.state(batch=BATCH)

    def run(way):
        def total(theta, u0, strength):
            return jnp.sum(jnp.sin(way(lambda t, u, h: nets.tanh_step(t, strength * u, h), theta, u0, 0.05)))

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(theta, u0, 1.01)

    found = run(lambda step, theta, u0, h: jm.propagate(step, theta, u0, h=h, backend=grid(2, 4)))
    assert nets.distance(found, run(nets.scan)) < 1e-11


SCHEDULES = {"cycles, then gradient": jm.CyclesThenGradient(), "predict, then sweep": jm.PredictThenSweep()}


def trained(layers, schedule, shape, iterations=20):
    problem, params, batch = nets.classification(
        layers, batch=BATCH, running_cost=mean_cost, penalty=nets.penalty, total=FINAL_TIME
    )
    solver = jm.MGRIT(4, levels=2, cycles=1, coarse_params=jm.average, coarse_step=jm.midpoint)
    trainer = jm.OneShot(problem, optax.sgd(0.1), solver, solver, SCHEDULES[schedule], grid(*shape))
    state, update = trainer.init(params, batch), jax.jit(trainer.step, donate_argnums=0)
    infos = []
    for _ in range(iterations):
        state, info = update(state, batch)
        infos.append(info)
    assert update._cache_size() == 1
    return state, trainer.params(state), jax.tree.map(lambda *x: np.array(x), *infos)


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule, layers, shape", [("predict, then sweep", 203, (2, 4)), ("cycles, then gradient", 64, (4, 2))]
)
def test_twenty_iterations_of_training_are_those_of_one_device(schedule, layers, shape):
    _, params, infos = trained(layers, schedule, shape)
    _, expected, expected_infos = trained(layers, schedule, LOCAL)
    assert nets.distance(params, expected) < 1e-12
    for name, a, b in zip(infos._fields, infos, expected_infos, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.abs(b).max(), err_msg=name)


def test_warm_values_are_spread_over_both_axes_and_layers_over_one():
    state, _, _ = trained(64, "predict, then sweep", (2, 4), iterations=1)
    for leaf in jax.tree.leaves(state.warm):
        assert {shard.data.shape[:2] for shard in leaf.addressable_shards} == {(16 // 4, BATCH // 2)}
    for leaf in jax.tree.leaves(state.params.layers):
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {64 // 4}


def test_a_batch_that_cannot_be_split_equally_is_refused():
    problem, params, batch = nets.classification(16, batch=9)
    trainer = jm.OneShot(problem, optax.sgd(0.1), backend=grid(2, 2))
    with pytest.raises(
        ValueError, match=r"splits the batch into 2 equal parts, but there are 9 samples .*multiple of 2"
    ):
        trainer.init(params, batch)
    with pytest.raises(ValueError, match="splits the batch into 2 equal parts, but there are 3 samples"):
        jm.solve(nets.tanh_step, nets.rough(16), nets.state(batch=3), h=0.1, backend=grid(2, 2))


def test_axes_that_are_not_those_of_the_mesh_are_refused():
    mesh = grid(2, 4).mesh
    with pytest.raises(ValueError, match="data_axis='batch' is not an axis of the mesh"):
        jm.Mesh(mesh, data_axis="batch")
    with pytest.raises(ValueError, match="axis and data_axis are both 'layers'"):
        jm.Mesh(mesh, data_axis="layers")


@pytest.mark.parametrize("shape", [LOCAL, pytest.param((2, 4), marks=pytest.mark.slow)])
@pytest.mark.parametrize("schedule", nets.slow_but(["predict, then sweep"], SCHEDULES))
def test_the_network_is_evaluated_exactly_where_its_layers_live(schedule, shape):
    problem, params, batch = nets.classification(53, batch=BATCH)
    other = jax.tree.map(lambda x: x[:7], batch)  # which two parts cannot share
    solver = jm.MGRIT(4, levels=2, cycles=1)
    trainer = jm.OneShot(problem, optax.sgd(0.1), solver, solver, SCHEDULES[schedule], grid(*shape))
    found = jax.jit(trainer.evaluate)(trainer.init(params, batch), other)
    assert nets.distance(found, problem.evaluate(params, other)) < 1e-13
