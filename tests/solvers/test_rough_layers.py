"""A coarse level that keeps all layers: the law of its contraction, where it is exact, and that nobody gathers it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks as nets

import jaxmgrit as jm


def rough(sweeps, factor=4, **options):
    """Two levels (or more) with Picard sweeps."""
    kept = dict(coarse_params=jm.all_layers, coarse_step=jm.picard(sweeps))
    return jm.MGRIT(factor, **{"levels": 2, "cycles": 3, **kept, **options})


def linear_step(theta, u, h):
    """A layer whose increment is linear."""
    return u + h * u @ theta


def contraction(theta, u0, solver):
    """Of the residual, by the second cycle."""
    norms = jm.solve(linear_step, theta, u0, h=1.0, solver=solver).residual_norms
    return float(norms[1] / norms[0])


# sum_n ||f_n'|| of coherent layers, and the root of sum_n ||f_n'||^2 of independent ones.
@pytest.mark.parametrize(
    "kind, strength, exponent",
    nets.slow_but([("independent", 1.0, 0.5)], [("coherent", 1.0, 1.0), ("independent", 1.0, 0.5)]),
)
def test_the_contraction_follows_its_law_in_sweeps_and_intervals(kind, strength, exponent):
    layers, width = 256, 16
    rng = np.random.default_rng(3)
    if kind == "coherent":
        theta = jnp.full((layers, 1, 1), strength / layers)
        u0 = jnp.ones((1, 1))
    else:
        w = rng.normal(size=(layers, width, width)) / np.sqrt(width)
        theta, u0 = jnp.asarray(strength / np.sqrt(layers) * w), jnp.asarray(rng.normal(size=(8, width)))
    found = {
        (k, p): contraction(theta, u0, rough(p, layers // k, cycles=2))
        for k, p in [(8, 1), (8, 2), (8, 3), (32, 1), (32, 2)]
    }
    factorial = {1: 2.0, 2: 6.0, 3: 24.0}
    for p in (1, 2):
        # Four times as many intervals: 4^p less where layers add up, 2^p where they are independent.
        assert 0.6 < found[8, p] / found[32, p] / 4 ** (exponent * p) < 1.7
        law = factorial[p] / factorial[p + 1] / 8.0
        assert 0.5 < found[8, p + 1] / found[8, p] / law**exponent < 2.0


@pytest.mark.parametrize(
    "layers, sweeps, options",
    [
        (16, 4, {}),
        pytest.param(18, 9, {}, marks=pytest.mark.slow),
        pytest.param(32, 8, dict(factor=(2, 4), levels=3), marks=pytest.mark.slow),
        pytest.param(37, 8, dict(factor=(2, 4), levels=3), marks=pytest.mark.slow),
        (18, 1, dict(exact_first=4)),
        pytest.param(18, 1, dict(exact_first=100), marks=pytest.mark.slow),
    ],
)
def test_as_many_sweeps_as_layers_are_exact_after_one_cycle(layers, sweeps, options):
    theta, u0, h = nets.rough(layers), nets.state(), nets.steps_of_unequal_size(layers, 5.0)
    solver = rough(sweeps, **{"cycles": 2, **options})
    sol, adj, _ = nets.solved(nets.tanh_step, theta, u0, h, solver, cost=nets.tanh_cost)
    for norms in (sol.residual_norms, adj.residual_norms):
        assert norms[1] < 1e-13 * norms[0]
    assert nets.distance(sol.u_final, nets.scan(nets.tanh_step, theta, u0, h)) < 1e-13


def test_one_sweep_less_than_layers_is_not_exact():
    theta, u0 = nets.rough(16), nets.state()
    norms = jm.solve(nets.tanh_step, theta, u0, h=0.3, solver=rough(3)).residual_norms
    assert 1e-8 < norms[1] / norms[0] < 0.1


def by_hand(theta, u, h, mask, sweeps):
    """Picard sweeps over the layers of one interval, in NumPy."""
    m = len(h)
    w = np.repeat(np.asarray(u)[None], m, 0)
    d = np.zeros_like(w)
    for _ in range(sweeps):
        for i in range(m):
            d[i] = mask[i] * h[i] * np.tanh(w[i] @ np.asarray(theta["w"][i]) + np.asarray(theta["b"][i]))
        for i in range(m):
            w[i] = np.asarray(u) + d[:i].sum(axis=0)
    return np.asarray(u) + d.sum(axis=0)


@pytest.mark.parametrize("sweeps", [0, 1, 2, 3])
def test_a_step_is_the_sum_of_the_increments_at_the_sweeps_states_and_padding_adds_nothing(sweeps):
    theta, u = nets.rough(5), nets.state()
    h, mask = np.linspace(0.1, 0.5, 5), np.array([True, True, False, True, False])
    found = jm.picard(sweeps)(nets.tanh_step, theta, u, jnp.asarray(h), 5, jnp.asarray(mask))
    np.testing.assert_allclose(found, by_hand(theta, u, h, mask, sweeps), rtol=1e-14)


def test_a_users_step_over_all_layers_gets_their_parameters_step_sizes_and_mask():
    seen = []

    def euler(step, theta, u, h, m, mask):
        seen.append((theta["w"].shape, h.shape, m, None if mask is None else mask.shape))
        return jm.picard(1)(step, theta, u, h, m, mask)

    theta, u0 = nets.rough(18), nets.state()
    own, ours = (rough(1, coarse_step=step) for step in (euler, jm.picard(1)))
    a, b = (jm.solve(nets.tanh_step, theta, u0, h=0.3, solver=s) for s in (own, ours))
    assert nets.distance((a.u_final, a.residual_norms), (b.u_final, b.residual_norms)) == 0
    assert set(seen) == {((4, 4, 4), (4,), 4, (4,)), ((4, 4, 4), (4,), 4, None)}  # the first when it is checked


def test_relaxation_only_starts_every_interval_from_what_its_neighbour_arrived_at():
    layers, m, cycles = 18, 4, 2
    theta, u0 = nets.rough(layers), nets.state()
    solver = jm.MGRIT(m, levels=2, cycles=cycles, coarse_step=jm.zero_step)
    sol = jm.solve(nets.tanh_step, theta, u0, h=0.3, solver=solver)
    starts = [u0] * 5
    for _ in range(cycles):
        ends = [
            nets.scan(nets.tanh_step, jax.tree.map(lambda x, j=j: x[m * j : m * (j + 1)], theta), start, 0.3)
            for j, start in enumerate(starts)
        ]
        starts = [u0, *ends[:4]]
    last = nets.scan(nets.tanh_step, jax.tree.map(lambda x: x[16:], theta), starts[4], 0.3)
    assert nets.distance(sol.u_final, last) < 1e-14


ON_DEVICES = {
    "two levels": rough(2, exact_first=1),
    "three levels": rough(2, 2, levels=3, cycle="F", cf_relaxations=(1, 1)),
    "skipped": rough(1, levels=3, skip_first_down=True),
}


@functools.lru_cache
def everything(layers, case, devices):
    theta, u0 = nets.rough(layers), nets.state()
    h = nets.steps_of_unequal_size(layers, 5.0)
    solver, backend = ON_DEVICES[case], nets.mesh(devices)
    sol, adj, gradients = nets.solved(nets.tanh_step, theta, u0, h, solver, cost=nets.tanh_cost, backend=backend)
    # Histories whole: what has fallen to rounding is the rounding of the first residual, and is compared with that.
    found = (sol.u_final, sol.residual_norms, adj.lam_initial, adj.residual_norms, gradients)
    return jax.tree.map(np.asarray, found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layers, case, devices",
    [
        *[(64, "two levels", 8), (35, "two levels", 4), (67, "two levels", 8)],
        *[(67, "three levels", 4), (64, "skipped", 2), (67, "skipped", 8)],
    ],
)
def test_devices_give_the_digits_of_one(layers, case, devices):
    assert nets.distance(everything(layers, case, devices), everything(layers, case, 1)) < 1e-12


@pytest.mark.parametrize("solver", [rough(2, 8), pytest.param(rough(2, 8, levels=3), marks=pytest.mark.slow)])
def test_nobody_gathers_the_layers(solver):
    layers, width, batch, devices = 512, 16, 2, 8
    theta = jax.ShapeDtypeStruct((layers, width, width), "float64")
    backend = nets.mesh(devices)

    def gradient(theta, u0):
        sol = jm.solve(lambda p, u, h: u + h * jnp.tanh(u @ p), theta, u0, h=0.01, solver=solver, backend=backend)
        return sol.u_final

    spread = jax.sharding.NamedSharding(backend.mesh, jax.sharding.PartitionSpec("layers"))
    state = jax.ShapeDtypeStruct((batch, width), "float64")
    compiled = jax.jit(gradient, in_shardings=(spread, None)).lower(theta, state).compile()
    sizes = compiled.memory_analysis()
    share = 8 * layers * width * width / devices
    states = 8 * batch * width * layers / devices
    assert sizes.argument_size_in_bytes < 1.01 * share + states
    # Copies of a device's own layers, at most: none of other devices'.
    assert sizes.temp_size_in_bytes < 3 * share + 10 * states
    assert "all-gather" not in compiled.as_text()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(coarse_params=jm.all_layers), "coarse_step=same_step takes the parameters of one layer"),
        (dict(coarse_params=jm.all_layers, coarse_step=jm.midpoint), "coarse_step=jm.picard"),
        (dict(coarse_step=jm.picard(2)), "give coarse_params=jm.all_layers too"),
        (dict(exact_first=1), "exact_first=1 runs layers one after another"),
        (dict(exact_first=-1), "exact_first=-1 is too small"),
    ],
)
def test_coarse_choices_that_do_not_fit_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        jm.MGRIT(**options)


@pytest.mark.parametrize("sweeps, kind", [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_sweeps_that_are_not_a_count_are_refused(sweeps, kind):
    with pytest.raises(kind, match=f"picard: sweeps={sweeps}"):
        jm.picard(sweeps)
