"""Coarse levels on many devices: neighbours share a part of a level; results stay, the path grows like the levels."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks as nets

import jaxmgrit as jm
from jaxmgrit import cost_model

FINAL_TIME = 5.0
F_CYCLE = jm.MGRIT(2, cycle="F", cf_relaxations=(1, 2), coarse_params=jm.average)


def everything(layers, solver, devices):
    theta, u0 = nets.rough(layers), nets.state()
    h = nets.steps_of_unequal_size(layers, FINAL_TIME)
    sol, adj, gradients = nets.solved(
        nets.tanh_step, theta, u0, h, solver, cost=nets.tanh_cost, backend=nets.mesh(devices)
    )
    return sol.u_final, sol.residual_norms, adj.lam_initial, adj.residual_norms, gradients


@pytest.mark.parametrize(
    ("layers", "solver", "devices"),
    nets.slow_but([(32, jm.MGRIT(4), 8)], [(32, jm.MGRIT(4), 8), (20, jm.MGRIT(4), 5), (203, jm.MGRIT(4), 7)]),
)
def test_results_are_those_of_one_device(layers, solver, devices):
    found, expected = everything(layers, solver, devices), everything(layers, solver, 1)
    assert nets.distance(found, expected) < 1e-12


def trained(layers, devices):
    problem, params, batch = nets.classification(layers)
    solver = jm.MGRIT(4, cycles=1, coarse_params=jm.average, coarse_step=jm.midpoint)
    trainer = jm.OneShot(problem, optax.sgd(0.1), solver, solver, jm.PredictThenSweep(), nets.mesh(devices))
    state, update = trainer.init(params, batch), jax.jit(trainer.step)
    for _ in range(5):
        state, info = update(state, batch)
    return trainer.params(state), info


@pytest.mark.skipif(len(jax.devices()) < 16, reason="run by the test below")
def test_results_on_sixteen_devices_are_those_of_one():
    for layers, solver, devices in [
        (48, jm.MGRIT(4), 12),
        (203, F_CYCLE, 16),
    ]:
        found, expected = everything(layers, solver, devices), everything(layers, solver, 1)
        assert nets.distance(found, expected) < 1e-12, (layers, devices)
    assert jm.MGRIT(4).hierarchy(64, 16, ragged=True)[1].devices == 4
    assert nets.distance(trained(64, 16), trained(64, 1)) < 1e-12


@pytest.mark.slow
@pytest.mark.skipif(len(jax.devices()) >= 16, reason="this is the run it starts")
def test_a_process_with_sixteen_devices_passes_the_test_above():
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=16")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "on_sixteen"]
    found = subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, timeout=500)
    assert found.returncode == 0, found.stdout[-4000:]
    assert "1 passed" in found.stdout


@pytest.mark.parametrize(("stride", "count"), [(1, 4), (2, 2), (2, 4), (4, 2)])
def test_a_part_of_the_devices_works_like_all_of_them(stride, count):
    backend, x = nets.mesh(8), jnp.arange(8.0)

    def inside(x, fill):
        part = backend.every(stride).neighbours(count)
        assert part.size == count
        whole = part.all_gather(x)
        return jnp.full_like(x, part.index(), dtype=int), whole[None], part.all_sum(x), part.shift(x, 1, fill)

    found = backend.lift(inside, ("sharded", "replicated"), ("sharded",) * 4)(x, jnp.asarray(-1.0))
    d = np.arange(8)
    position, first = d // stride % count, d - d // stride % count * stride
    members = first[:, None] + stride * np.arange(count)
    np.testing.assert_array_equal(found[0], position)
    np.testing.assert_array_equal(found[1], members)
    np.testing.assert_array_equal(found[2], members.sum(axis=1))
    np.testing.assert_array_equal(found[3], np.where(position == 0, -1, d - stride))


def critical_path(devices):
    """Steps and pullbacks that a device does one after another in 2 + 2 V-cycles and the gradient, 4 layers each."""
    solver = jm.MGRIT(4, cycles=2)
    parts = cost_model.iteration_counts(jm.CyclesThenGradient(), 4 * devices, solver, solver, devices)
    return sum(part.all_phi + part.all_vjp for part in map(cost_model.total, parts))


def test_the_critical_path_grows_like_the_number_of_levels():
    path = {devices: critical_path(devices) for devices in (8, 64, 1024)}
    assert path[1024] <= 3 * path[8]
    assert path[1024] <= 1.75 * path[64]


@pytest.mark.parametrize("devices", [8, 12, 64, 1000, 1024])
@pytest.mark.parametrize("solver", [jm.MGRIT(4), jm.MGRIT(2), jm.MGRIT((8, 3, 2))])
def test_parts_are_whole_intervals_of_neighbours(solver, devices):
    levels = solver.hierarchy(9 * devices, devices)
    assert levels[-1].devices == 1
    for fine, coarse in zip(levels[:-1], levels[1:], strict=True):
        merged, rest = divmod(fine.devices, coarse.devices)
        assert rest == 0
        if coarse.devices > 1:
            assert merged * fine.share == coarse.share * coarse.factor
