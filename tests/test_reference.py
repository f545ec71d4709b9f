"""What the original program computes: objective, states, adjoints, gradient and residual histories, to rounding."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks as nets

import jaxmgrit as jm

DATA = dict(np.load(Path(__file__).parent / "data" / "xbraid_tanh_N16_w8.npz"))
META = json.loads(str(DATA["meta"]))
CONFIGS = {config["name"]: config for config in META["residual_configs"]}
H = META["dt"]

by_config = pytest.mark.parametrize("name", CONFIGS)


def step(theta, u, h):
    """The original's dense layer: one scalar bias for all units."""
    return u + h * jnp.tanh(u @ theta["w"].T + theta["b"])


def opening(theta, x):
    return jnp.tanh(x @ theta["w"].T + theta["b"][0])


def loss(theta, u, y):
    logits = u @ theta["w"].T + theta["b"][None]
    return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(logits), axis=1)), None


def squares(tree):
    return sum(jnp.sum(x * x) for x in jax.tree.leaves(tree))


def penalty_parts(params):
    """Tikhonov on opening, hidden and last layer, and smoothness in depth."""
    differences = jax.tree.map(lambda x: (x[1:] - x[:-1]) / H, params.layers)
    return {
        "tik_open": 0.5 * META["gamma_tik"] * squares(params.opening),
        "tik_hidden": 0.5 * META["gamma_tik"] * squares(params.layers),
        "tik_class": 0.5 * META["gamma_class"] * squares(params.closing),
        "ddt": 0.5 * META["gamma_ddt"] * squares(differences),
    }


def penalty(params):
    return sum(penalty_parts(params).values())


@pytest.fixture(scope="module")
def params():
    names = (("opening", "open"), ("layers", "hidden"), ("closing", "class"))
    return jm.Params(
        **{part: {"w": jnp.asarray(DATA[f"W_{name}"]), "b": jnp.asarray(DATA[f"b_{name}"])} for part, name in names}
    )


@pytest.fixture(scope="module")
def batch():
    return jnp.asarray(DATA["X"]), jnp.asarray(DATA["C"])


def flat(params):
    """Parameters or gradients in the order of the file: opening, then weights and bias of each layer, then the last."""
    layers = [x.reshape(len(params.layers["b"]), -1) for x in (params.layers["w"], params.layers["b"])]
    parts = [
        params.opening["w"],
        params.opening["b"],
        np.concatenate(layers, axis=1),
        params.closing["w"],
        params.closing["b"],
    ]
    return np.concatenate([np.ravel(part) for part in parts])


@pytest.fixture(scope="module")
def exact(params, batch):
    """The sequential state and adjoint, with both trajectories."""
    u0 = opening(params.opening, batch[0])
    sol = jm.solve(step, params.layers, u0, h=H, solver=jm.Sequential())
    lam_final = jax.grad(lambda u: loss(params.closing, u, batch[1])[0])(sol.u_final)
    adj = jm.adjoint_solve(step, params.layers, sol, lam_final, h=H, solver=jm.Sequential())
    return jm.trajectory(step, params.layers, sol, h=H), jm.adjoint_trajectory(step, params.layers, sol, adj, h=H)


def test_the_parameters_are_read_in_the_order_of_the_file(params):
    np.testing.assert_array_equal(flat(params), DATA["design"])


def test_every_state_is_the_originals(exact):
    assert nets.distance(exact[0], DATA["states"]) < 1e-12


def test_every_adjoint_is_the_originals(exact):
    assert nets.distance(exact[1][1:], DATA["adjoints_1toN"]) < 1e-12


def one_iteration(params, batch, solver, adjoint):
    """The gradient, as what one step of steepest descent takes off the parameters; and what was reported."""
    problem = jm.Problem(opening, step, loss, h=H, penalty=penalty)
    trainer = jm.OneShot(problem, optax.sgd(1.0), solver, adjoint)
    state, info = jax.jit(trainer.step)(trainer.init(params, batch), batch)
    return jax.tree.map(jnp.subtract, params, trainer.params(state)), info


def test_the_objective_and_its_parts_are_the_originals(params, batch):
    _, info = one_iteration(params, batch, jm.Sequential(), jm.Sequential())
    found = {"loss": info.loss, "objective": info.objective, **penalty_parts(params)}
    for name, value in found.items():
        assert float(value) == pytest.approx(float(DATA[name]), rel=1e-12), name


def test_the_loss_of_evaluate_is_the_originals(params, batch):
    problem = jm.Problem(opening, step, loss, h=H)
    assert float(problem.evaluate(params, batch)[0]) == pytest.approx(float(DATA["loss"]), rel=1e-12)


def test_the_sequential_gradient_of_the_objective_is_the_originals(params, batch):
    gradient, info = one_iteration(params, batch, jm.Sequential(), jm.Sequential())
    assert nets.distance(flat(gradient), DATA["grad_true"]) < 1e-12
    assert float(info.grad_norm) == pytest.approx(np.linalg.norm(DATA["grad_true"]), rel=1e-12)


@pytest.mark.parametrize("cycle", nets.slow_but(["V"], ["V", "F"]))
def test_the_gradient_of_the_converged_multigrid_is_the_originals(params, batch, cycle):
    solver = jm.MGRIT(4, cycle=cycle, cycles=20, rtol=0.0)
    gradient, _ = one_iteration(params, batch, solver, solver)
    assert nets.distance(flat(gradient), DATA["grad_true"]) < 1e-10


def original_norm(u):
    """The original divides a state's norm by the batch size."""
    return jnp.sqrt(jnp.sum(u * u)) / META["nbatch"]


def solver_of(config, cycles):
    below = (config["cfactor"],) * (config["maxlevels"] - 1)
    return jm.MGRIT(
        (config["cfactor0"], *below),
        levels=config["maxlevels"],
        min_coarse=config["mincoarse"],
        cf_relaxations=(config["nrelax0"], config["nrelax"]),
        cycle="F" if config["fmg"] else "V",
        skip_first_down=bool(config["skip"]),
        cycles=cycles,
        norm=original_norm,
    )


@by_config
def test_the_levels_are_the_originals(name):
    config = CONFIGS[name]
    levels = solver_of(config, 1).hierarchy(META["N_hidden"])
    assert [level.steps + 1 for level in levels] == config["level_npoints"]
    assert [level.factor for level in levels[:-1]] == config["level_cfactor"]


def histories(params, batch, config, cycles, adjoint_cycles):
    """Residuals of the state after so many cycles, and of the adjoint solved then, both with C-points that are zero."""
    solver = solver_of(config, cycles)
    u0 = opening(params.opening, batch[0])
    intervals = META["N_hidden"] // config["cfactor0"]
    zeros = jm.CPoints(jnp.zeros_like(u0), jnp.zeros((intervals, *u0.shape)))
    sol = jm.solve(step, params.layers, u0, h=H, solver=solver, guess=zeros)
    lam_final = jax.grad(lambda u: loss(params.closing, u, batch[1])[0])(sol.u_final)
    adj = jm.adjoint_solve(
        step, params.layers, sol, lam_final, h=H, solver=solver_of(config, adjoint_cycles), guess=zeros
    )
    return np.asarray(sol.residual_norms), np.asarray(adj.residual_norms)


@pytest.fixture(scope="module")
def converged(params, batch):
    return functools.cache(lambda name: histories(params, batch, CONFIGS[name], 12, 12))


def assert_history(found, expected, skipped):
    assert found.shape == expected.shape
    if skipped:
        assert found[0] == expected[0] == -1.0
        found, expected = found[1:], expected[1:]
    meaningful = expected > 1e-9 * expected[0]
    np.testing.assert_allclose(found[meaningful], expected[meaningful], rtol=1e-6)
    assert (found[~meaningful] < 1e-8 * expected[0]).all()


quickly = nets.slow_but(["L2_cf4_F0", "L3_cf4_2_FCF", "L10_cf2_FCF_skip"], CONFIGS or ["absent"])


@pytest.mark.parametrize("name", quickly)
def test_the_residuals_of_the_state_are_the_originals(converged, name):
    assert_history(converged(name)[0], DATA[f"res_{name}_primal"], CONFIGS[name]["skip"])


@pytest.mark.parametrize("name", quickly)
def test_the_residuals_of_the_adjoint_are_the_originals(converged, name):
    assert_history(converged(name)[1], DATA[f"res_{name}_adjoint"], CONFIGS[name]["skip"])


@pytest.mark.parametrize("name", nets.slow_but(["L3_cf4_2_FCF"], CONFIGS or ["absent"]))
def test_the_residuals_of_the_adjoint_after_two_cycles_of_the_state_are_the_originals(params, batch, name):
    expected = DATA[f"res_{name}_adjoint_k2"]
    found = histories(params, batch, CONFIGS[name], 2, len(expected))[1]
    assert_history(found, expected, CONFIGS[name]["skip"])
