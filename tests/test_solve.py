"""`solve`, `adjoint_solve` and `layer_gradients` against `lax.scan`, over solvers, sizes, dtypes and structures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks as nets

import jaxmgrit as jm

FINAL_TIME = 2.0
TO_ROUNDING = dict(cycles=60, rtol=0.0)

SOLVERS = {
    "default": jm.MGRIT(**TO_ROUNDING),
    "FCF": jm.MGRIT(cf_relaxations=(1, 1), **TO_ROUNDING),
    "FCFCF, V": jm.MGRIT(2, cf_relaxations=(2, 2), **TO_ROUNDING),
    "F-cycle, skipped": jm.MGRIT(3, cycle="F", skip_first_down=True, **TO_ROUNDING),
    "one factor per level": jm.MGRIT((4, 3, 2), **TO_ROUNDING),
    "averaged midpoint": jm.MGRIT(8, coarse_params=jm.average, coarse_step=jm.midpoint, **TO_ROUNDING),
    "sequential": jm.Sequential(),
    "sequential in segments": jm.Sequential(segment=4),
}
TWO_LEVELS = jm.MGRIT(3, levels=2, **TO_ROUNDING)  # where levels are not the subject
PAIRS = [
    ("sequential", "FCF"),
    ("sequential in segments", "default"),
    ("FCF", "sequential"),
    ("default", "FCFCF, V"),
    ("F-cycle, skipped", "default"),
]


@functools.lru_cache
def by_scan(layers, general):
    """Network, and what plain JAX finds: states, d J / d u^0 and d J / d theta; J = |u^N|^2 / 4 + running cost."""
    theta, u0 = nets.rough(layers), nets.state()
    h = nets.steps_of_unequal_size(layers, FINAL_TIME) if general else FINAL_TIME / layers
    cost = nets.tanh_cost if general else None

    def objective(theta, u0):
        u = nets.scan(nets.tanh_step, theta, u0, h)
        extra = nets.scan_cost(nets.tanh_step, cost, theta, u0, h) if general else 0.0
        return 0.25 * jnp.sum(u * u) + extra

    states = nets.scan_states(nets.tanh_step, theta, u0, h)
    return (theta, u0, h, cost), (states, *jax.jit(jax.grad(objective, argnums=(1, 0)))(theta, u0))


def assert_equals_scan(layers, solver, adjoint, general):
    (theta, u0, h, cost), (states, lam0, gradients) = by_scan(layers, general)
    sol, adj, found = nets.solved(nets.tanh_step, theta, u0, h, SOLVERS[solver], SOLVERS[adjoint], cost=cost)
    assert nets.distance(sol.check().u_final, states[-1]) < 1e-12
    assert nets.distance(adj.check().lam_initial, lam0) < 1e-12
    assert nets.distance(found, gradients) < 1e-11


@pytest.mark.parametrize("layers", nets.slow_but([1, 7], [1, 2, 3, 7, 16, 203]))
def test_any_number_of_layers_gives_the_state_adjoint_and_gradients_of_scan(layers):
    assert_equals_scan(layers, "default", "default", general=False)


@pytest.mark.parametrize("solver", nets.slow_but(["FCF"], SOLVERS))
def test_any_solver_gives_the_state_adjoint_and_gradients_of_scan(solver):
    assert_equals_scan(53, solver, solver, general=True)


@pytest.mark.parametrize("solver, adjoint", nets.slow_but(PAIRS[:1], PAIRS))
def test_state_and_adjoint_may_be_solved_by_different_solvers(solver, adjoint):
    assert_equals_scan(48 if "default" in (solver, adjoint) else 53, solver, adjoint, general=True)


@pytest.fixture(scope="module")
def network():
    return nets.smooth(37), nets.state(), FINAL_TIME / 37


def test_trajectories_hold_the_states_and_adjoints_of_every_layer(network):
    theta, u0, h = network
    sol, adj, _ = nets.solved(nets.tanh_step, theta, u0, h, TWO_LEVELS)
    states = nets.scan_states(nets.tanh_step, theta, u0, h)
    assert nets.distance(jm.trajectory(nets.tanh_step, theta, sol, h=h), states) < 1e-13

    def one(lam, layer):
        theta, u = layer
        return jax.vjp(lambda v: nets.tanh_step(theta, v, h), u)[1](lam)[0], lam

    first, after = jax.lax.scan(one, 0.5 * states[-1], (theta, states[:-1]), reverse=True)
    adjoints = jnp.concatenate([first[None], after])
    assert nets.distance(jm.adjoint_trajectory(nets.tanh_step, theta, sol, adj, h=h), adjoints) < 1e-13


def test_gradients_are_those_of_central_differences(network):
    theta, u0, _ = network
    h = nets.steps_of_unequal_size(37, FINAL_TIME)
    _, _, gradients = nets.solved(nets.tanh_step, theta, u0, h, TWO_LEVELS, cost=nets.tanh_cost)

    @jax.jit
    def objective(theta):
        u = nets.scan(nets.tanh_step, theta, u0, h)
        return 0.25 * jnp.sum(u * u) + nets.scan_cost(nets.tanh_step, nets.tanh_cost, theta, u0, h)

    direction = nets.rough(37, seed=9)
    slope = nets.central_difference(objective, theta, direction)
    assert nets.inner(gradients, direction) == pytest.approx(slope, rel=1e-8)


def test_the_adjoint_is_the_transpose_of_the_linearised_network(network):
    theta, u0, h = network
    sol, adj, _ = nets.solved(nets.tanh_step, theta, u0, h, TWO_LEVELS, lam_final=nets.state(seed=5))
    direction = nets.state(seed=6)
    _, moved = jax.jvp(lambda u: nets.scan(nets.tanh_step, theta, u, h), (u0,), (direction,))
    assert nets.inner(adj.lam_initial, direction) == pytest.approx(nets.inner(adj.c_points.initial, moved), rel=1e-13)


@pytest.mark.slow
def test_two_cycles_and_two_more_from_their_c_points_are_four():
    theta, u0, h = nets.rough(53), nets.state(), FINAL_TIME / 53
    solver = functools.partial(jm.MGRIT, (4, 2))
    four = nets.solved(nets.tanh_step, theta, u0, h, solver(cycles=4), cost=nets.tanh_cost)
    two = jm.solve(nets.tanh_step, theta, u0, h=h, solver=solver(cycles=2))
    two_more = jm.solve(nets.tanh_step, theta, u0, h=h, solver=solver(cycles=2), guess=two.c_points)
    np.testing.assert_array_equal(
        jnp.concatenate([two.residual_norms, two_more.residual_norms]), four[0].residual_norms
    )
    assert nets.distance(two_more.c_points, four[0].c_points) == 0.0

    rest = dict(h=h, solver=solver(cycles=2), running_cost=nets.tanh_cost)
    lam_final = 0.5 * four[0].u_final
    half = jm.adjoint_solve(nets.tanh_step, theta, four[0], lam_final, **rest)
    whole = jm.adjoint_solve(nets.tanh_step, theta, four[0], lam_final, guess=half.c_points, **rest)
    np.testing.assert_array_equal(jnp.concatenate([half.residual_norms, whole.residual_norms]), four[1].residual_norms)
    assert nets.distance(whole.c_points, four[1].c_points) == 0.0


def test_a_guess_is_any_tree_map_of_c_points_and_its_first_entry_is_ignored(network):
    theta, u0, h = network
    solver = jm.MGRIT(3, cycles=2)
    plain = jm.solve(nets.tanh_step, theta, u0, h=h, solver=solver).c_points
    zeros = jax.tree.map(jnp.zeros_like, plain)
    other = zeros._replace(initial=zeros.initial + 7.0)
    from_zeros, from_other = (
        jm.solve(nets.tanh_step, theta, u0, h=h, solver=solver, guess=guess) for guess in (zeros, other)
    )
    assert nets.distance(from_other.c_points, from_zeros.c_points) == 0.0
    np.testing.assert_array_equal(from_other.c_points.initial, u0)


@pytest.mark.parametrize("tolerance", ["rtol", "atol"])
def test_a_solve_finishes_the_cycle_whose_recorded_residual_meets_the_tolerance_and_stops(network, tolerance):
    theta, u0, h = network
    fixed = jm.solve(nets.tanh_step, theta, u0, h=h, solver=jm.MGRIT(3, levels=2, cycles=8)).residual_norms
    bound = float(fixed[3] / fixed[0] if tolerance == "rtol" else fixed[3]) * 1.01
    solver = jm.MGRIT(3, levels=2, cycles=8, **{tolerance: bound})
    sol = jm.solve(nets.tanh_step, theta, u0, h=h, solver=solver)
    assert sol.cycles == 4
    assert sol.result == jm.Result.CONVERGED
    np.testing.assert_array_equal(sol.residual_norms[:4], fixed[:4])
    np.testing.assert_array_equal(sol.residual_norms[4:], -1.0)
    four = jm.solve(nets.tanh_step, theta, u0, h=h, solver=jm.MGRIT(3, levels=2, cycles=4))
    assert nets.distance(sol.c_points, four.c_points) < 1e-15


def test_an_unreached_tolerance_uses_all_cycles_and_check_raises(network):
    theta, u0, h = network
    sol = jm.solve(nets.tanh_step, theta, u0, h=h, solver=jm.MGRIT(3, levels=2, cycles=2, rtol=1e-14))
    assert sol.result == jm.Result.CYCLES_USED_UP
    with pytest.raises(jm.SolveError, match="tolerance was set, it was not reached: allow more cycles"):
        sol.check()


def test_a_fixed_number_of_cycles_passes_check_however_inexact(network):
    theta, u0, h = network
    sol = jm.solve(nets.tanh_step, theta, u0, h=h, solver=jm.MGRIT(3, levels=2, cycles=2))
    assert sol.check() is sol
    assert sol.cycles == 2


def test_a_tolerance_of_zero_stops_at_rounding(network):
    theta, u0, h = network
    sol = jm.solve(nets.tanh_step, theta, u0, h=h, solver=jm.MGRIT(3, cf_relaxations=(1, 1), cycles=60, rtol=0.0))
    assert sol.result == jm.Result.CONVERGED
    # K = 12 intervals: exact by finite termination after 6 cycles, and smooth parameters need no more.
    assert sol.cycles <= 7
    assert sol.residual_norms[sol.cycles - 1] < 1e-14 * jnp.linalg.norm(sol.c_points.ends)


def test_the_residual_norm_is_that_of_the_given_norm(network):
    theta, u0, h = network

    def norm_of_first_sample(u):
        return jnp.linalg.norm(u[0])

    solver = jm.MGRIT(3, levels=2, cycles=1, norm=norm_of_first_sample)
    recorded = jm.solve(nets.tanh_step, theta, u0, h=h, solver=solver).residual_norms
    alone = jm.solve(nets.tanh_step, theta, u0[:1], h=h, solver=jm.MGRIT(3, levels=2, cycles=1)).residual_norms
    np.testing.assert_allclose(recorded, alone, rtol=1e-13)


@pytest.mark.slow
def test_intervals_per_sweep_changes_nothing():
    theta, u0, h = nets.rough(53), nets.state(), FINAL_TIME / 53
    whole, *few = (
        nets.solved(nets.tanh_step, theta, u0, h, jm.MGRIT(4, levels=2, intervals_per_sweep=n), cost=nets.tanh_cost)
        for n in (14, 1, 3)
    )
    for found in few:
        for a, b in zip(found, whole, strict=True):
            assert nets.distance(jax.tree.leaves(a), jax.tree.leaves(b)) < 1e-14


def leapfrog(theta, u, h):
    """A state of two leaves; parameters of several, nested, one of them an integer and one a key."""
    (strength, (order, key)), shift = theta["force"], theta["shift"]
    noise = nets.keyed(key)
    p = u["p"] - h * (strength * u["q"] * (order % 3).astype(u["q"].dtype) + shift[None] + noise)
    return {"p": p, "q": u["q"] + h * p}


def leapfrog_network(layers):
    rng = np.random.default_rng(4)
    keys = jax.random.split(jax.random.key(0), layers)
    strength, shift = jnp.asarray(rng.uniform(size=layers)), jnp.asarray(rng.normal(size=(layers, 3)))
    theta = {"force": (strength, (jnp.arange(layers), keys)), "shift": shift}
    return theta, {"p": jnp.asarray(rng.normal(size=(2, 3))), "q": jnp.asarray(rng.normal(size=(2, 3)))}


def test_states_and_parameters_are_pytrees_and_integers_and_keys_are_carried():
    theta, u0 = leapfrog_network(23)
    solver = jm.MGRIT(3, levels=2, coarse_params=jm.average, **TO_ROUNDING)
    sol, adj, gradients = nets.solved(leapfrog, theta, u0, FINAL_TIME / 23, solver)
    u_final, pull = jax.vjp(lambda t, u: nets.scan(leapfrog, t, u, FINAL_TIME / 23), theta, u0)
    d_theta, lam0 = pull(jax.tree.map(lambda x: 0.5 * x, u_final))
    assert nets.distance(sol.u_final, u_final) < 1e-13
    assert nets.distance(adj.lam_initial, lam0) < 1e-13
    assert jax.tree.structure(gradients) == jax.tree.structure(theta)
    assert nets.distance((gradients["force"][0], gradients["shift"]), (d_theta["force"][0], d_theta["shift"])) < 1e-12
    assert [x.dtype for x in gradients["force"][1]] == [jax.dtypes.float0, jax.dtypes.float0]


@pytest.mark.slow
def test_single_precision_stays_single_precision():
    single = functools.partial(jax.tree.map, lambda x: x.astype(jnp.float32))
    theta, u0 = single((nets.smooth(37), nets.state()))
    h = np.float64(FINAL_TIME / 37)
    sol, adj, gradients = nets.solved(
        nets.tanh_step, theta, u0, h, jm.MGRIT(3, cycles=20, rtol=0.0), cost=nets.tanh_cost
    )
    assert {x.dtype.name for x in jax.tree.leaves((sol.u_final, sol.residual_norms, adj.lam_initial, gradients))} == {
        "float32"
    }
    assert sol.result == adj.result == jm.Result.CONVERGED
    assert nets.distance(sol.u_final, nets.scan(nets.tanh_step, theta, u0, h)) < 1e-6


def test_leaves_of_a_state_may_differ_in_precision():
    def step(theta, u, h):
        wide = u["wide"] + h * jnp.sin(theta * u["wide"])
        return {"wide": wide, "narrow": u["narrow"] + (h * wide).astype(jnp.float32)}

    theta, u0 = jnp.linspace(0.5, 1.5, 24), {"wide": jnp.ones(2), "narrow": jnp.ones(2, jnp.float32)}
    sol = jm.solve(step, theta, u0, h=0.05, solver=jm.MGRIT(4, cycles=6))
    u = u0
    for n in range(24):
        u = step(theta[n], u, 0.05)
    assert nets.distance(sol.u_final, u) < 1e-6


@pytest.mark.slow
def test_a_complex_state_has_the_gradient_of_scan():
    def step(theta, u, h):
        return u + jax.lax.complex(0.0 * theta, h * theta) * u * (1.0 + jnp.conj(u) * u)

    theta, u0 = jnp.linspace(0.5, 1.5, 25), jnp.asarray([1.0 + 0.5j, 0.2 - 1.0j])
    u_final, pull = jax.vjp(lambda t, u: nets.scan(step, t, u, 0.05), theta, u0)
    d_theta, lam0 = pull(0.5 * u_final)
    sol, adj, gradients = nets.solved(step, theta, u0, 0.05, jm.MGRIT(4, **TO_ROUNDING))
    assert nets.distance((sol.u_final, adj.lam_initial, gradients), (u_final, lam0, d_theta)) < 1e-12


@pytest.mark.slow
def test_a_layer_that_passes_through_complex_numbers_has_the_gradient_of_scan():
    def step(theta, u, h):
        waves = jax.lax.complex(jnp.tanh(theta), theta) * jnp.fft.rfft(jnp.tanh(u))
        return u + h * jnp.fft.irfft(waves, u.shape[-1])

    theta, u0 = jnp.linspace(0.5, 1.5, 25), nets.state()
    u_final, pull = jax.vjp(lambda t, u: nets.scan(step, t, u, 0.05), theta, u0)
    sol, adj, gradients = nets.solved(step, theta, u0, 0.05, jm.MGRIT(4, **TO_ROUNDING))
    expected = u_final, *reversed(pull(0.5 * u_final))
    assert nets.distance((sol.u_final, adj.lam_initial, gradients), expected) < 1e-12


def square_roots(theta, u, h):
    return u + h * jnp.sqrt(theta["s"]) * jnp.sqrt(u)


def test_padding_puts_no_nan_into_gradients_of_steps_that_zero_is_poison_to():
    theta, u0, h = {"s": jnp.linspace(1.0, 2.0, 22)}, jnp.asarray([[1.0, 2.0]]), 1.0 / 22
    _, adj, gradients = nets.solved(square_roots, theta, u0, h, jm.MGRIT(4, **TO_ROUNDING))
    u_final, pull = jax.vjp(lambda t, u: nets.scan(square_roots, t, u, h), theta, u0)
    assert nets.distance((gradients, adj.lam_initial), pull(0.5 * u_final)) < 1e-12


@pytest.mark.parametrize(
    "step, network", nets.slow_but([(nets.tanh_step, "tanh")], [(square_roots, "roots"), (nets.tanh_step, "tanh")])
)
def test_a_fixed_number_of_cycles_is_differentiable_by_plain_jax(step, network):
    layers = 22
    theta = {"s": jnp.linspace(1.0, 2.0, layers)} if network == "roots" else nets.rough(layers)
    u0 = 1.0 + nets.state() ** 2

    @jax.jit
    def objective(theta, u0):
        return jnp.sum(jm.solve(step, theta, u0, h=FINAL_TIME / layers, solver=jm.MGRIT(4, cycles=2)).u_final ** 2)

    gradients = jax.jit(jax.grad(objective, argnums=(0, 1)))(theta, u0)
    direction = jax.tree.map(jnp.sin, (theta, u0))
    slope = nets.central_difference(lambda x: objective(*x), (theta, u0), direction)
    assert nets.inner(gradients, direction) == pytest.approx(slope, rel=1e-7)


@pytest.mark.slow
def test_solve_works_under_jit_and_vmap_and_each_sample_stops_by_itself(network):
    theta, u0, h = network
    solver = jm.MGRIT(3, levels=2, cycles=20, rtol=1e-8)

    def alone(theta):
        sol = jm.solve(nets.tanh_step, theta, u0, h=h, solver=solver)
        return sol.u_final, sol.cycles, sol.residual_norms

    several = jax.tree.map(lambda x: jnp.stack([x, 0.01 * x, 2.0 * x]), theta)
    together = jax.jit(jax.vmap(alone))(several)
    one_by_one = [alone(jax.tree.map(lambda x, k=k: x[k], several)) for k in range(3)]
    assert len({int(cycles) for _, cycles, _ in one_by_one}) > 1, "the samples must stop at different cycles"
    for k, expected in enumerate(one_by_one):
        np.testing.assert_array_equal(together[1][k], expected[1])
        np.testing.assert_allclose(together[0][k], expected[0], rtol=1e-13)
        np.testing.assert_allclose(together[2][k], expected[2], rtol=1e-9)


@pytest.mark.slow
def test_a_step_may_close_over_traced_values(network):
    theta, u0, h = network

    def value(strength):
        def step(theta, u, h):
            return nets.tanh_step(theta, strength * u, h)

        return jnp.sum(jm.solve(step, theta, u0, h=h, solver=jm.MGRIT(3)).u_final)

    value = jax.jit(value)
    slope = nets.central_difference(value, 1.01, 1.0)
    assert float(jax.jit(jax.grad(value))(1.01)) == pytest.approx(slope, rel=1e-7)
