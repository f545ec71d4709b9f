"""The laws of MGRIT (section 2 of the method), to their stated sharpness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks as nets

import jaxmgrit as jm

ROUNDING = 1e-12


def silly(step, theta, u, h, m):
    """A coarse propagator that has nothing to do with the layers."""
    return 0.3 - 0.7 * u[::-1]


def silly_for(solver, **changed):
    return jm.MGRIT(3, levels=2, cf_relaxations=(solver, 1), coarse_step=silly, **changed)


@pytest.fixture(
    scope="module", params=[pytest.param(21, marks=pytest.mark.slow), 23], ids=["K = 7", "K = 7 and a rest"]
)
def network(request):
    layers = request.param
    theta, u0 = nets.rough(layers), nets.state()
    exact = nets.scan_states(nets.tanh_step, theta, u0, 0.1)
    return theta, u0, exact


def cycle_by_cycle(network, nu, cycles):
    """Yield (k, C-points after k cycles, residual norm of cycle k), k = 0, 1, ..., of a two-level solve."""
    theta, u0, _ = network
    guess, solver = None, silly_for(nu, cycles=1)
    for k in range(cycles):
        sol = jm.solve(nets.tanh_step, theta, u0, h=0.1, solver=solver, guess=guess)
        before = jnp.broadcast_to(u0, sol.c_points.ends.shape) if guess is None else guess.ends
        yield k, before, sol.residual_norms[0]
        guess = sol.c_points


@pytest.mark.parametrize("nu", [0, 1, 2])
def test_after_k_cycles_the_first_k_times_1_plus_nu_c_points_are_exact_and_no_more(network, nu):
    exact = network[2][3::3]
    intervals = len(exact)
    for k, ends, _ in cycle_by_cycle(network, nu, -(-intervals // (1 + nu)) + 1):
        errors = np.max(np.abs(ends[:intervals] - exact), axis=(1, 2))
        count = min(k * (1 + nu), intervals)
        assert (errors[:count] < ROUNDING).all()
        assert (errors[count : count + 1] > 1e-3).all()


@pytest.mark.parametrize("nu", [0, 1, 2])
def test_the_kth_residual_vanishes_if_and_only_if_nothing_is_left_to_correct(network, nu):
    intervals = len(network[2][3::3])
    for k, _, residual in cycle_by_cycle(network, nu, intervals + 2):
        assert (residual < ROUNDING) == (k * (1 + nu) + nu >= intervals), f"cycle {k}"


@pytest.mark.parametrize("nu", [0, 1, 2])
def test_two_levels_are_exact_after_k_over_1_plus_nu_cycles_and_not_before(network, nu):
    theta, u0, exact = network
    enough = -(-(len(exact[3::3])) // (1 + nu))
    finals = [
        jm.solve(nets.tanh_step, theta, u0, h=0.1, solver=silly_for(nu, cycles=cycles)).u_final
        for cycles in (enough - 1, enough)
    ]
    assert nets.distance(finals[0], exact[-1]) > 1e-3
    assert nets.distance(finals[1], exact[-1]) < ROUNDING


def test_the_adjoint_too_is_exact_after_k_over_1_plus_nu_cycles_and_not_before(network):
    theta, u0, exact = network
    intervals = len(exact[3::3])
    sol = jm.solve(nets.tanh_step, theta, u0, h=0.1, solver=jm.Sequential(3))
    _, pull = jax.vjp(lambda u: nets.scan(nets.tanh_step, theta, u, 0.1), u0)
    found = jm.adjoint_solve(nets.tanh_step, theta, sol, exact[-1], h=0.1, solver=silly_for(1, cycles=intervals))
    vanishing = [k for k, r in enumerate(found.residual_norms) if r < ROUNDING]
    assert vanishing == [k for k in range(intervals) if 2 * k + 1 >= intervals]
    assert nets.distance(found.lam_initial, pull(exact[-1])[0]) < ROUNDING


def times_lam(theta, u, h):
    return theta["lam"] * u


def times_mu(step, theta, u, h, m):
    return theta["mu"] * u


@pytest.mark.parametrize("nu", [0, 1, 2])
@pytest.mark.parametrize("lam, mu", [(0.9, 0.5), (-0.8, 0.3), (1.1, 1.2), (0.7, -0.9)])
def test_errors_of_a_scalar_problem_propagate_by_the_known_matrix(nu, lam, mu):
    intervals, m = 8, 3
    theta = {"lam": jnp.full(m * intervals, lam), "mu": jnp.full(m * intervals, mu)}
    expected = np.zeros((intervals + 1, intervals + 1))
    for i in range(intervals + 1):
        for j in range(i + 1 + nu, intervals + 1):
            expected[j, i] = lam ** (nu * m) * (lam**m - mu) * mu ** (j - i - 1 - nu)

    # The exact solution is zero; sample i starts with the error 1 at C-point i alone.
    u0 = jnp.zeros(intervals)
    errors = jm.CPoints(u0, jnp.eye(intervals))
    # Functions of the module: what is compiled for one lambda and mu serves all.
    solver = jm.MGRIT(m, levels=2, cycles=1, cf_relaxations=(nu, 1), coarse_step=times_mu)
    sol = jm.solve(times_lam, theta, u0, h=1.0, solver=solver, guess=errors)
    np.testing.assert_allclose(sol.c_points.ends, expected[1:, 1:], rtol=0, atol=1e-14)
    # The adjoint runs the other way: its C-point j is the interval end that has K - j intervals before it.
    backwards = jm.CPoints(u0, jnp.eye(intervals)[::-1])
    adj = jm.adjoint_solve(times_lam, theta, sol, u0, h=1.0, solver=solver, guess=backwards)
    np.testing.assert_allclose(adj.c_points.ends[::-1], expected[1:, 1:], rtol=0, atol=1e-14)


def cycles_to_reduce_the_residual(layers, cycles=8):
    """Cycles of the state and of the adjoint until the residual is 1e-8 of that of C-points that are all zero."""
    theta, u0 = nets.smooth(layers, width=3), nets.state(width=3, batch=2)
    solver = jm.MGRIT(4, cf_relaxations=(1, 1), cycles=cycles)
    zeros = jm.CPoints(u0, jnp.zeros((layers // 4, 2, 3)))
    options = dict(h=1.0 / layers, solver=solver, guess=zeros)
    sol = jm.solve(nets.tanh_step, theta, u0, **options)
    adj = jm.adjoint_solve(nets.tanh_step, theta, sol, sol.u_final, **options)
    reached = [np.append(x.residual_norms <= 1e-8 * x.residual_norms[0], True) for x in (sol, adj)]
    return [int(np.argmax(x)) for x in reached]


@pytest.mark.slow
def test_cycles_to_a_fixed_reduction_do_not_grow_with_depth():
    counts = np.array([cycles_to_reduce_the_residual(layers) for layers in (64, 256, 1024, 4096)])
    assert counts.max() <= 6
    assert (counts[-1] <= counts[0]).all()


@pytest.mark.parametrize("solver", [jm.MGRIT(levels=1), jm.MGRIT(16, min_coarse=4)], ids=["levels=1", "min_coarse"])
def test_one_level_is_sequential_propagation_in_no_cycles(solver):
    theta, u0 = nets.rough(50), nets.state()
    sol, adj, gradients = nets.solved(nets.tanh_step, theta, u0, 0.1, solver)
    exact = nets.solved(nets.tanh_step, theta, u0, 0.1, jm.Sequential())
    assert sol.residual_norms.shape == adj.residual_norms.shape == (0,)
    assert sol.cycles == adj.cycles == 0
    assert sol.result == adj.result == jm.Result.CONVERGED
    assert (
        nets.distance((sol.u_final, adj.lam_initial, gradients), (exact[0].u_final, exact[1].lam_initial, exact[2]))
        == 0
    )


@pytest.mark.parametrize(
    "solver",
    [
        jm.MGRIT(3, levels=2, cycles=2, coarse_step=silly),
        jm.MGRIT(3, cycles=2, cycle="F", cf_relaxations=(1, 2), coarse_params=jm.average, coarse_step=jm.midpoint),
    ],
    ids=["silly coarse step", "F-cycle"],
)
@pytest.mark.parametrize("layers", nets.slow_but([38], [36, 38]))
def test_the_exact_solution_is_a_fixed_point_with_residual_zero(solver, layers):
    theta, u0, h = nets.rough(layers), nets.state(), 0.1
    exact = jm.solve(nets.tanh_step, theta, u0, h=h, solver=jm.Sequential(segment=3))
    sol = jm.solve(nets.tanh_step, theta, u0, h=h, solver=solver, guess=exact.c_points)
    assert (sol.residual_norms < ROUNDING).all()
    assert nets.distance(sol.u_final, exact.u_final) < ROUNDING

    lam = jm.adjoint_solve(nets.tanh_step, theta, exact, exact.u_final, h=h, solver=jm.Sequential(segment=3))
    adj = jm.adjoint_solve(nets.tanh_step, theta, exact, exact.u_final, h=h, solver=solver, guess=lam.c_points)
    assert (adj.residual_norms < ROUNDING).all()
    assert nets.distance(adj.lam_initial, lam.lam_initial) < ROUNDING
