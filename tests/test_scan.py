"""`jm.scan` in the place of `lax.scan`: the same carries, outputs and gradients by every solver, on every backend."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks as nets

import jaxmgrit as jm

STEPS = 22
H = 2.0 / STEPS
CONVERGED = jm.MGRIT(3, cycles=40, rtol=0.0, sequential_fallback=True)
RELAXED = jm.MGRIT(4, levels=2, cycles=8, coarse_step=lambda step, theta, u, h, m: jax.tree.map(jnp.zeros_like, u))


def cell(weights):
    """A step with shared weights; carry, inputs and outputs are pytrees, one input and one output integers."""

    def f(carry, x, h=H):
        u = carry["u"] + h * jnp.tanh(carry["u"] @ weights["w"] + x["a"])
        v = 0.9 * carry["v"] + h * jnp.sum(u, axis=1) * (x["n"] % 3).astype(u.dtype)
        return {"u": u, "v": v}, {"y": jnp.sin(carry["u"]) @ weights["out"], "n": x["n"] + 1, "v": carry["v"]}

    return f


def arguments(dtype=jnp.float64):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(0.4 * rng.normal(size=shape), dtype)  # noqa: E731
    weights = {"w": draw(4, 4), "out": draw(4, 2)}
    return weights, {"u": draw(3, 4), "v": draw(3)}, draw(STEPS, 3, 4)


def value_and_gradients(scan, dtype=jnp.float64, **options):
    """Carry and outputs, and the gradients of a function of both for weights, initial carry and inputs."""

    def total(weights, init, a):
        carry, ys = scan(cell(weights), init, {"a": a, "n": jnp.arange(STEPS)}, **options)
        value = sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves((carry, ys["y"], ys["v"])))
        return value, (carry, ys)

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*arguments(dtype))


WAYS = {
    "default": dict(),
    "sequential": dict(solver=jm.Sequential()),
    "multigrid": dict(solver=CONVERGED, adjoint=jm.MGRIT(4, cycles=40, rtol=0.0), h=H),
    "multigrid state": dict(solver=CONVERGED, h=H),
    "multigrid adjoint": dict(adjoint=CONVERGED, h=H),
    "relaxation": dict(solver=RELAXED, adjoint=RELAXED),
    "newton": dict(solver=jm.Newton(8)),
}


@pytest.mark.parametrize(
    ("way", "reverse"),
    nets.slow_but(
        [("default", True)],
        [(way, True) for way in WAYS] + [(way, False) for way in ("default", "multigrid", "newton")],
    ),
)
def test_carries_outputs_and_gradients_are_those_of_lax_scan(way, reverse):
    found = value_and_gradients(jm.scan, reverse=reverse, **WAYS[way])
    assert nets.distance(found, value_and_gradients(jax.lax.scan, reverse=reverse)) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("way", ["default", "sequential", "multigrid", "relaxation", "newton"])
def test_single_precision_is_as_good_as_that_of_lax_scan(way):
    exact = value_and_gradients(jax.lax.scan)
    plain = nets.distance(value_and_gradients(jax.lax.scan, jnp.float32), exact)
    assert nets.distance(value_and_gradients(jm.scan, jnp.float32, **WAYS[way]), exact) < max(1e-5, 4 * plain)


@pytest.mark.parametrize(
    ("devices", "options"),
    nets.slow_but(
        [(2, WAYS["relaxation"])],
        [
            *[(2, dict(h=H)), (2, WAYS["relaxation"])],
            *[(4, dict()), (4, WAYS["multigrid"]), (4, dict(solver=jm.Newton(4)))],
        ],
    ),
)
def test_steps_spread_over_devices_give_the_same(devices, options):
    found = value_and_gradients(jm.scan, reverse=devices == 4, backend=nets.mesh(devices), **options)
    assert nets.distance(found, value_and_gradients(jax.lax.scan, reverse=devices == 4)) < 1e-12


@pytest.mark.slow
def test_step_sizes_of_every_step_are_given_to_f_and_differentiated():
    weights, init, a = arguments()
    sizes = nets.steps_of_unequal_size(STEPS, 2.0)

    def total(scan, h):
        carry, ys = scan(h)
        return sum(jnp.sum(jnp.sin(x)) for x in (carry["u"], ys["y"]))

    def plain(h):
        f = cell(weights)
        return jax.lax.scan(lambda c, x: f(c, x[0], x[1]), init, ({"a": a, "n": jnp.arange(STEPS)}, h), reverse=True)

    def ours(h, **options):
        return jm.scan(cell(weights), init, {"a": a, "n": jnp.arange(STEPS)}, h=h, reverse=True, **options)

    expected = jax.jit(jax.grad(lambda h: total(plain, h)))(sizes)
    for options in ({}, WAYS["multigrid"] | {"h": None}):
        options = {k: v for k, v in options.items() if k != "h"}
        found = jax.jit(jax.grad(lambda h: total(lambda h: ours(h, **options), h)))(sizes)  # noqa: B023
        assert nets.distance(found, expected) < 1e-12


@pytest.mark.parametrize("options", [dict(), dict(solver=jm.Sequential())])
def test_steps_without_inputs_are_counted_by_length(options):
    def f(u, _):
        return jnp.cos(u), u

    def run(scan, u, **options):
        carry, ys = scan(f, u, None, length=7, **options)
        return jnp.sum(carry) + jnp.sum(ys**2)

    u = jnp.asarray([0.1, 0.5])
    found = jax.grad(lambda u: run(jm.scan, u, **options))(u)
    assert nets.distance(found, jax.grad(lambda u: run(jax.lax.scan, u))(u)) < 1e-14


def test_integers_and_keys_are_carried_by_default():
    def f(carry, x):
        n, key, u = carry
        return (n + 1, jax.random.fold_in(key, x), u * (1.0 + 0.1 * nets.keyed(key))), n * u

    init = (jnp.asarray(3), jax.random.key(0), jnp.ones(2))
    xs = jnp.arange(5)

    def run(scan, u):
        (n, key, u), ys = scan(f, (init[0], init[1], u), xs)
        return jnp.sum(u) + jnp.sum(ys), (n, jax.random.key_data(key), u, ys)

    found, expected = (jax.value_and_grad(partial(run, s), has_aux=True)(init[2]) for s in (jm.scan, jax.lax.scan))
    assert nets.distance(found, expected) == 0.0


def test_numbers_as_carries_take_the_dtype_they_have_after_a_step():
    def f(u, x):
        return u + x, u

    xs = jnp.arange(3, dtype=jnp.float32)
    found, expected = (s(f, 0.0, xs) for s in (jm.scan, jax.lax.scan))
    assert jax.tree.map(jnp.result_type, found) == jax.tree.map(jnp.result_type, expected)
    assert nets.distance(found, expected) == 0.0


@pytest.mark.parametrize("options", [dict(), dict(solver=jm.Sequential())])
def test_no_steps_leave_the_carry_as_it_is(options):
    carry, ys = jm.scan(lambda u, x: (2.0 * u, u + x), jnp.ones(2), jnp.zeros((0, 2)), **options)
    assert jnp.array_equal(carry, jnp.ones(2)) and ys.shape == (0, 2)


DERIVATIVES = {
    "forward": lambda f: lambda u: jax.jvp(f, (u,), (jnp.cos(u),)),
    "hessian": jax.hessian,
    "reverse over reverse": lambda f: jax.grad(lambda u: jnp.sum(jax.grad(f)(u) ** 2)),
    "linearised": lambda f: lambda u: jax.linearize(f, u)[1](u),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("derivative", nets.slow_but(["hessian"], DERIVATIVES))
def test_the_default_has_every_derivative_of_a_scan(derivative, large, monkeypatch):
    if large:  # then layers are computed again
        monkeypatch.setattr("jaxmgrit.system.plain._KEPT_BYTES", 0)
    weights, init, a = arguments()

    def of(scan):
        def total(u):
            carry, ys = scan(cell(weights), {**init, "u": u}, {"a": a, "n": jnp.arange(STEPS)})
            return jnp.sum(carry["u"] ** 2) + jnp.sum(jnp.sin(ys["y"]))

        return jax.jit(DERIVATIVES[derivative](total))(init["u"])

    assert nets.distance(of(jm.scan), of(jax.lax.scan)) < 1e-12


# --- bad input -------------------------------------------------------------------------------------------------------


def scan(**changed):
    weights, init, a = arguments()
    given = dict(f=cell(weights), init=init, xs={"a": a, "n": jnp.arange(STEPS)})
    return jm.scan(**{**given, **changed})


def alone(carry, x, h=H):
    return carry


def renamed(carry, x, h=H):
    return {"u": carry["u"]}, None


MISUSES = {
    "the carry alone": (dict(f=alone), TypeError, "f must return a pair", "(carry, None)"),
    "another carry": (dict(f=renamed), TypeError, "f changes the carry", "'v'"),
    "no function": (dict(f=3), TypeError, "scan: f=3", "f(carry, x) -> (carry, y)"),
    "unequal inputs": (dict(xs=(jnp.ones(3), jnp.ones(4))), ValueError, "xs", "3", "4"),
    "another length": (dict(length=5), ValueError, "length=5", "22"),
    "no length": (dict(xs=None), ValueError, "length=None", "length=N"),
    "no coarse steps": (dict(solver=jm.MGRIT(4)), ValueError, "scan: solver=MGRIT", "same_step", "give h=", "picard"),
    "no coarse adjoint": (
        dict(adjoint=jm.MGRIT(4, coarse_step=jm.midpoint)),
        ValueError,
        "adjoint=MGRIT",
        "midpoint",
        "Newton",
    ),
    "integer carries": (
        dict(f=lambda n, x: (n + 1, n), init=jnp.asarray(0), solver=jm.Sequential()),
        TypeError,
        "init",
        "int64",
        "leave out solver=",
    ),
    "functions as inputs": (dict(xs={"a": jnp.tanh}), TypeError, "xs['a']", "functions are not parameters"),
    "functions as carries": (dict(init=jnp.tanh), TypeError, "init", "functions are not parameters"),
    "no solver": (dict(solver="multigrid"), TypeError, "solver='multigrid'", "jm.MGRIT"),
    "no backend": (dict(backend=4), TypeError, "backend=4", "jm.Local()"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_is_named_before_anything_is_compiled(misuse):
    changed, kind, *parts = MISUSES[misuse]
    arguments()  # made, and what makes them compiled
    with nets.compilations() as programs, pytest.raises(kind) as caught:
        scan(**changed)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert not set(programs) - {"convert_element_type", "iota"}


# --- transformations with solvers named ------------------------------------------------------------------------------

NAMED = dict(solver=CONVERGED, adjoint=CONVERGED)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, NAMED], ids=["default", "named"])
def test_propagate_inside_the_users_shard_map_has_value_and_gradients_of_a_scan(options):
    theta, u0, strength = nets.rough(16), nets.state(batch=4), jnp.asarray(0.7)
    mesh, spec = nets.mesh(2).mesh, jax.sharding.PartitionSpec

    def total(way, theta, u0, strength):
        def part(theta, u0, strength):
            return way(lambda t, u, h: nets.tanh_step(t, strength * u, h), theta, u0)

        run = jax.shard_map(part, mesh=mesh, in_specs=(spec(), spec("layers"), spec()), out_specs=spec("layers"))
        return jnp.sum(jnp.sin(run(theta, u0, strength)))

    def of(way):
        return jax.jit(jax.value_and_grad(partial(total, way), argnums=(0, 1, 2)))(theta, u0, strength)

    found = of(lambda step, theta, u0: jm.propagate(step, theta, u0, h=0.1, **options))
    assert nets.distance(found, of(lambda step, theta, u0: nets.scan(step, theta, u0, 0.1))) < 1e-12


def test_newton_inside_the_users_shard_map_is_refused_by_name():
    theta, mesh, spec = nets.rough(16), nets.mesh(2).mesh, jax.sharding.PartitionSpec("layers")

    def part(u0):
        return jm.propagate(nets.tanh_step, theta, u0, h=0.1, adjoint=jm.Newton(4))

    with pytest.raises(ValueError, match=r"propagate: jm\.Newton inside a jax\.shard_map over layers .* jm\.MGRIT"):
        jax.shard_map(part, mesh=mesh, in_specs=spec, out_specs=spec)(nets.state(batch=4))


@pytest.mark.slow
def test_a_step_that_branches_on_h_may_close_over_a_traced_value():
    theta, u0 = nets.rough(16), nets.state()

    def of(way):
        def total(strength):
            def step(t, u, h):
                return u + h * (1.0 if h < 0.3 else 0.5) * jnp.tanh(strength * (u @ t["w"]))

            return jnp.sum(way(step))

        return jax.value_and_grad(total)(0.7)

    found = of(lambda step: jm.propagate(step, theta, u0, h=0.1, **NAMED))
    plain = of(lambda step: jax.lax.scan(lambda u, t: (step(t, u, 0.1), None), u0, theta)[0])
    assert nets.distance(found, plain) < 1e-12


@pytest.mark.slow
def test_a_coarse_step_may_close_over_a_differentiated_value():
    theta, u0 = nets.rough(16), nets.state()

    def value(strength):
        def coarse(step, theta, u, h, m):
            return jax.tree.map(lambda a, b: a + strength * (b - a), u, step(theta, u, h))

        solver = jm.MGRIT(4, levels=2, cycles=8, coarse_step=coarse)
        return jnp.sum(jm.propagate(nets.tanh_step, theta, strength * u0, h=0.1, solver=solver, adjoint=solver))

    def plain(strength):
        return jnp.sum(nets.scan(nets.tanh_step, theta, strength * u0, 0.1))

    found, expected = (jax.value_and_grad(f)(0.9) for f in (value, plain))
    assert nets.distance(found, expected) < 1e-12


@pytest.mark.slow
def test_a_step_that_closes_over_a_traced_value_sees_its_part_of_the_batch():
    axes = (jax.sharding.AxisType.Auto,) * 2
    grid = jax.make_mesh((2, 2), ("data", "layers"), axis_types=axes, devices=jax.devices()[:4])
    theta, u0 = nets.rough(16), nets.state(batch=4)

    def of(**options):
        def total(strength):
            def step(t, u, h):
                return nets.tanh_step(t, strength * (u - jnp.mean(u, axis=1, keepdims=True)), h)

            return jnp.sum(jnp.sin(jm.propagate(step, theta, u0, h=0.1, **options)))

        return jax.jit(jax.value_and_grad(total))(0.7)

    assert nets.distance(of(backend=jm.Mesh(grid, data_axis="data")), of()) < 1e-12
