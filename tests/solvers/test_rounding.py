"""Convergence that can be trusted: no wrong value with a good code, whatever the values' scale, dtype and mix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks as nets
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmgrit as jm
from jaxmgrit._pytree import euclidean_norm, hypot
from jaxmgrit.solvers.convergence import gauge
from jaxmgrit.solvers.result import worse

GOOD = (jm.Result.CONVERGED, jm.Result.SEQUENTIAL)
TO_ROUNDING = jm.MGRIT(4, cycles=50, rtol=0.0, sequential_fallback=True)


def scaled_step(theta, u, h):
    """A tanh layer that acts on every leaf and sample in units of its own size, `theta["unit"]`."""

    def one(x, unit):
        w, unit = theta["w"].astype(x.dtype), unit.astype(x.dtype)
        return x + jnp.asarray(h, x.dtype) * unit * jnp.tanh((x / unit) @ w)

    return jax.tree.map(one, u, theta["unit"])


def network(units, dtype, layers=32, width=4, growth=1.0, seed=0):
    """Weights, and states (samples, width) of one leaf per list of units, one unit per sample; `growth` in depth."""
    rng = np.random.default_rng(seed)
    depth = growth ** (np.arange(layers) / layers)
    unit = [np.multiply.outer(depth, np.asarray(u, np.float64))[..., None].astype(dtype) for u in units]
    w = jnp.asarray(rng.normal(0, 0.7, (layers, width, width)), jnp.float32)
    theta = dict(w=w, unit=jax.tree.map(jnp.asarray, unit))
    u0 = [jnp.asarray(rng.normal(size=(len(u), width)) * np.asarray(u)[:, None], dtype) for u in units]
    return theta, u0


def to_rounding(step, theta, u0, h, solver=TO_ROUNDING):
    return jm.propagate(step, theta, u0, h=h, solver=solver, adjoint=solver, with_result=True)


def error(u, expected):
    """The largest error of any sample of any leaf, in units in the last place of that sample's largest entry."""

    def of(x, y):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        scale = np.abs(y).max(axis=1)
        eps = float(jnp.finfo(expected[0].dtype).eps)
        return (np.abs(x - y).max(axis=1) / np.where(scale > 0, scale, 1)).max() / eps

    return max(map(of, u, expected))


CASES = {
    "float16": ([[1.0, 1.0]], jnp.float16, 1.0),
    "float16, 500 samples of 30": ([[30.0] * 500], jnp.float16, 1.0),
    "bfloat16": ([[1.0, 3.0]], jnp.bfloat16, 1.0),
    "1e18": ([[1e18, 2e18]], jnp.float32, 1.0),
    "1e-24": ([[1e-24, 2e-24]], jnp.float32, 1.0),
    "1e30": ([[1e30]], jnp.float32, 1.0),
    "one sample of 1e6": ([[1e6, 1.0, 1.0]], jnp.float32, 1.0),
    "one sample of 1e8": ([[1e8, 1.0, 1.0]], jnp.float32, 1.0),
    "one leaf of 1e6": ([[1e6, 1e6], [1.0, 1.0]], jnp.float32, 1.0),
    "one leaf of 1e-8": ([[1e-8], [1.0]], jnp.float64, 1.0),
}


@pytest.mark.parametrize("case", nets.slow_but(["bfloat16", "1e30", "one leaf of 1e6"], CASES))
def test_to_rounding_means_every_sample_of_every_leaf_at_every_c_point(case):
    units, dtype, growth = CASES[case]
    with jax.numpy_dtype_promotion("standard"):
        theta, u0 = network(units, dtype, growth=growth)
        expected = nets.scan(scaled_step, theta, u0, 1 / 32)
        u, code = to_rounding(scaled_step, theta, u0, 1 / 32)
    assert int(code) in GOOD
    # What the scan's own rounding, 32 layers of it, may come to.
    assert error(u, expected) < 64


def test_states_that_decay_in_depth_are_right_at_the_end():
    def decaying(theta, u, h):
        return u * jnp.exp(-28.0 * h) * (1 + 0.3 * jnp.sin(u / jnp.max(jnp.abs(u)) + theta))

    with jax.numpy_dtype_promotion("standard"):
        theta = jnp.linspace(0, 3, 64, dtype=jnp.float32)
        u0 = jnp.asarray([[1.0, 0.4], [0.3, 0.8]], jnp.float32)
        expected = jax.lax.scan(lambda u, t: (decaying(t, u, 1 / 64), None), u0, theta)[0]
        assert np.abs(expected).max() < 1e-9
        u, code = to_rounding(decaying, theta, u0, 1 / 64)
    assert int(code) in GOOD
    np.testing.assert_allclose(u, expected, rtol=1e-4)


NARROW = ("float16", "bfloat16", "float64")


@pytest.mark.parametrize("dtypes", [("float32",), pytest.param(NARROW, marks=pytest.mark.slow)], ids=str)
def test_no_wrong_value_with_a_good_code(dtypes):
    solve = jax.jit(lambda theta, u0, solver: to_rounding(scaled_step, theta, u0, 1 / 16, solver), static_argnums=2)
    scan = jax.jit(lambda theta, u0: nets.scan(scaled_step, theta, u0, 1 / 16))
    exponents = st.floats(-30, 30)

    @settings(max_examples=50 if len(dtypes) == 1 else 300, deadline=None, derandomize=True, database=None)
    @given(
        units=st.lists(st.lists(exponents, min_size=2, max_size=2), min_size=2, max_size=2),
        dtype=st.sampled_from(dtypes),
        seed=st.integers(0, 1 << 16),
    )
    def holds(units, dtype, seed):
        if dtype == "float16":  # its range
            units = [[4 * e / 30 for e in u] for u in units]
        theta, u0 = network([[10.0**e for e in u] for u in units], dtype, layers=16, seed=seed)
        u, code = solve(theta, u0, TO_ROUNDING)
        expected = scan(theta, u0)
        assert int(code) not in GOOD or error(u, expected) < 64

    with jax.numpy_dtype_promotion("standard"):
        holds()


def test_norms_neither_over_nor_underflow():
    for scale in (1e-30, 1.0, 1e30):
        x = jnp.asarray([3.0, 4.0], jnp.float32) * jnp.float32(scale)
        np.testing.assert_allclose(euclidean_norm([x, x]), np.float32(5 * np.sqrt(2)) * np.float32(scale), rtol=1e-6)
    assert euclidean_norm(jnp.full((4096,), 100.0, jnp.float16)).dtype == jnp.float32
    np.testing.assert_allclose(euclidean_norm(jnp.full((4096,), 100.0, jnp.float16)), 6400.0)
    assert np.isnan(hypot(jnp.asarray([1.0, np.nan]))) and np.isinf(hypot(jnp.asarray([1.0, np.inf])))
    assert hypot(jnp.zeros(3)) == 0 and (jax.grad(hypot)(jnp.zeros(3)) == 0).all()


def test_every_lane_of_a_vmap_converges_by_itself():
    theta, u0 = network([[1.0, 1.0]], jnp.float32)
    lanes = jnp.stack([u0[0], 1e-12 * u0[0]])

    def step(w, u, h):
        return u + jnp.asarray(h, u.dtype) * jnp.tanh(u @ w)

    u, codes = jax.vmap(lambda x: to_rounding(step, theta["w"], x, 1 / 32))(lanes)
    assert set(codes.tolist()) <= set(GOOD)
    for lane, value in zip(lanes, u, strict=True):
        assert error([value], [nets.scan(step, theta["w"], lane, 1 / 32)]) < 64


def test_an_explicit_tolerance_keeps_its_meaning_on_the_recorded_norm():
    theta, u0 = nets.rough(64), nets.state()
    sol = jm.solve(nets.tanh_step, theta, u0, h=2 / 64, solver=jm.MGRIT(4, cycles=30, rtol=1e-5))
    norms = np.asarray(sol.residual_norms[: int(sol.cycles)])
    assert sol.result == jm.Result.CONVERGED
    assert norms[-1] <= 1e-5 * norms[0] < norms[-2]


def test_a_solve_that_does_not_converge_gives_up_and_says_how_it_stands():
    theta, u0, h = nets.rough(512, scale=3.0), nets.state(), 150.0 / 512
    sol = jm.solve(nets.tanh_step, theta, u0, h=h, solver=jm.MGRIT(4, levels=2, cycles=100, rtol=1e-10))
    assert int(sol.cycles) < 30, "residuals that do not fall are noticed"
    assert int(sol.result) in (jm.Result.STALLED, jm.Result.DIVERGED)
    with pytest.raises(jm.SolveError, match=r"Last residual .* of the first, .* of the values"):
        sol.check()
    text = str(sol)
    assert "\n" not in text and "512 layers in intervals of 4" in text and f"{int(sol.cycles)} cycles" in text
    rescued = jm.MGRIT(4, levels=2, cycles=100, rtol=1e-10, sequential_fallback=True)
    sol = jm.solve(nets.tanh_step, theta, u0, h=h, solver=rescued).check()
    assert sol.result == jm.Result.SEQUENTIAL and "wasted" in str(sol)


def test_fixed_cycles_whose_residual_is_still_large_say_so_without_raising():
    theta, u0, h = nets.rough(64, scale=2.0), nets.state(), 20.0 / 64
    sol = jm.solve(nets.tanh_step, theta, u0, h=h, solver=jm.MGRIT(8, cycles=2))
    assert sol.result == jm.Result.STALLED and sol.check() is sol
    sol = jm.solve(nets.tanh_step, nets.rough(64), u0, h=1 / 64, solver=jm.MGRIT(2, cycles=2))
    assert sol.result == jm.Result.CYCLES_USED_UP


def test_which_of_two_codes_is_worse_is_a_table():
    order = [jm.Result(code) for code in (0, 5, 1, 4, 2, 3)]
    for i, a in enumerate(order):
        for j, b in enumerate(order):
            assert int(worse(int(a), int(b))) == order[max(i, j)]
    np.testing.assert_array_equal(worse(jnp.asarray([0, 3]), jnp.asarray([5, 4])), [5, 3])
    jm.check(np.asarray([0, 5, 1, 4]))
    with pytest.raises(jm.SolveError, match="diverged"):
        jm.check(np.asarray([[5, 4], [2, 1]]))
    with pytest.raises(jm.SolveError, match="stalled"):
        jm.check(4, tolerance=True)


@pytest.mark.parametrize(
    "options, error_type, words",
    [
        (dict(batch_axis=2), ValueError, "batch_axis=2 is out of range .* shape"),
        (dict(batch_axis="samples"), TypeError, "batch_axis='samples' is not an integer"),
        (dict(relaxation_weight=0.0, cf_relaxations=(1, 1)), ValueError, "relaxation_weight=0.0 is not a finite"),
        (dict(relaxation_weight=0.7, levels=2), ValueError, "weights C-relaxation, but cf_relaxations"),
        (dict(relaxation_weight=0.7, cf_relaxations=(0, 0)), ValueError, "leave the weight at 1"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(options, error_type, words):
    with pytest.raises(error_type, match=words):
        jm.solve(nets.tanh_step, nets.rough(16), nets.state(), h=0.1, solver=jm.MGRIT(4, **options))


@pytest.mark.parametrize("units, unmet", [(2.0, 0), (30.0, 2)])
def test_rounding_is_a_few_units_in_the_last_place_of_the_largest_value_there(units, unmet):
    end = {"a": jnp.asarray([[1.0, 1e-6], [1e6, 1.0]]), "b": jnp.asarray([0.0, 0.0])}
    eps = float(jnp.finfo(jnp.float64).eps)
    arrived = {"a": end["a"] + units * eps * jnp.asarray([[1.0, 1.0], [1e6, 1e6]]), "b": end["b"]}
    assert gauge(arrived, end, euclidean_norm, 0).unmet == unmet
    # Of whole leaves, the samples' own scales do not count.
    one_sample = {"a": end["a"] + 30 * eps * jnp.asarray([[1.0, 1.0], [0.0, 0.0]]), "b": end["b"]}
    assert gauge(one_sample, end, euclidean_norm, 0).unmet == 1
    assert gauge(one_sample, end, euclidean_norm, None).unmet == 0
    assert gauge(jax.tree.map(lambda x: x / 0, end), end, euclidean_norm, 0).unmet == 4


def test_a_residual_a_million_times_the_first_ends_the_solve_at_once():
    def blown_up(step, theta, u, h, m):
        return 1e4 * u

    solver = jm.MGRIT(2, levels=2, cycles=50, rtol=1e-3, coarse_step=blown_up)
    sol = jm.solve(lambda p, u, h: 0.9 * u, jnp.zeros((64, 1)), jnp.ones((1, 1)), h=1.0, solver=solver)
    assert int(sol.cycles) <= 2 and sol.result == jm.Result.DIVERGED


@pytest.mark.parametrize(("cycles", "growth", "diverged"), [(2, 9.76, False), (3, 22.2, True)])
def test_a_solve_whose_residual_has_grown_more_than_tenfold_has_diverged(cycles, growth, diverged):
    solver = jm.MGRIT(
        4, levels=2, cf_relaxations=(0, 0), cycles=cycles, coarse_step=lambda step, theta, u, h, m: 1.2 * u
    )
    sol = jm.solve(lambda theta, u, h: u * theta, jnp.full((64, 1), 0.97), jnp.ones(1), h=1.0, solver=solver)
    assert sol.residual_norms[-1] / sol.residual_norms[0] == pytest.approx(growth, rel=1e-2)
    assert (sol.result == jm.Result.DIVERGED) == diverged
