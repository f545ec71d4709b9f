"""Bad input: messages that name the field, the value, what was expected and the remedy, before anything is compiled."""

import contextlib
import dataclasses
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import networks as nets

import jaxmgrit as jm

LAYERS = 24
# What single operations outside jit compile, in order to look at values before any program of the method.
INSPECTION = set("isfinite invert bitwise_not _reduce_all _reduce_sum convert_element_type broadcast_in_dim".split())


@contextlib.contextmanager
def refused(kind, *parts):
    """The block raises an error of this kind whose message holds all parts, and compiles no program first."""
    with nets.compilations() as programs, pytest.raises(kind) as caught:
        yield
    message = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    for part in parts:
        assert part in message, f"{part!r} is missing from {message!r}"
    assert not set(programs) - INSPECTION, "programs were compiled before the error"


# --- options ---------------------------------------------------------------------------------------------------------

OPTIONS = [
    (dict(coarsening_factor=1), ValueError, "coarsening_factor=1 ", "integer >= 2"),
    (dict(coarsening_factor=(4, 1)), ValueError, "coarsening_factor=1 ", "integer >= 2"),
    (dict(coarsening_factor=()), ValueError, "coarsening_factor=()", "integer >= 2 or one per level"),
    (dict(coarsening_factor=2.0), TypeError, "coarsening_factor=2.0", "integer >= 2"),
    (dict(coarsening_factor=True), TypeError, "coarsening_factor=True", "integer >= 2"),
    (dict(levels=0), ValueError, "levels=0", "integer >= 1"),
    (dict(min_coarse=-1), ValueError, "min_coarse=-1", "integer >= 0"),
    (dict(cf_relaxations=1), ValueError, "cf_relaxations=1", "(finest level, all levels below)"),
    (dict(cf_relaxations=(0, -1)), ValueError, "cf_relaxations=-1", "integer >= 0"),
    (dict(cf_relaxations=(0, 1, 1)), ValueError, "cf_relaxations=(0, 1, 1)", "(finest level, all levels below)"),
    (dict(cycle="W"), ValueError, "cycle='W'", "'V' or 'F'"),
    (dict(cycles=0), ValueError, "cycles=0", "integer >= 1"),
    (dict(rtol=-1.0), ValueError, "rtol=-1.0", "finite number >= 0"),
    (dict(atol=float("nan")), ValueError, "atol=nan", "finite number >= 0"),
    (dict(skip_first_down=1), TypeError, "skip_first_down=1", "True or False"),
    (dict(sequential_fallback=True), ValueError, "sequential_fallback=True", "set rtol or atol"),
    (dict(coarse_params="injection"), TypeError, "coarse_params='injection'", "jm.injection, jm.average"),
    (dict(coarse_step="midpoint"), TypeError, "coarse_step='midpoint'", "jm.same_step, jm.midpoint"),
    (dict(norm="l2"), TypeError, "norm='l2'", "state -> scalar"),
    (dict(intervals_per_sweep=0), ValueError, "intervals_per_sweep=0", "integer >= 1"),
]


@pytest.mark.parametrize("options, kind, value, remedy", OPTIONS, ids=[str(case[0]) for case in OPTIONS])
def test_an_option_out_of_range_fails_when_the_solver_is_made(options, kind, value, remedy):
    with refused(kind, f"MGRIT: {value}", remedy):
        jm.MGRIT(**options)


def test_a_segment_of_no_layers_is_refused():
    with refused(ValueError, "Sequential: segment=0", "integer >= 1"):
        jm.Sequential(segment=0)


def test_an_axis_that_the_mesh_does_not_have_is_refused():
    with refused(ValueError, "axis='depth'", "('layers',)", "jax.make_mesh"):
        jm.Mesh(nets.mesh(2).mesh, axis="depth")


def test_a_mesh_of_explicit_axes_is_refused():
    with refused(ValueError, "Mesh: the axes ['layers']", "axis_types=(jax.sharding.AxisType.Auto,)"):
        jm.Mesh(jax.make_mesh((2,), ("layers",), axis_types=(jax.sharding.AxisType.Explicit,)))


@pytest.mark.parametrize("alpha", [-0.1, float("inf"), "much"])
def test_a_negative_or_infinite_anticipation_is_refused(alpha):
    with refused(ValueError, f"alpha={alpha!r}", "finite number >= 0"):
        jm.anticipate(alpha)


# --- what is solved --------------------------------------------------------------------------------------------------

THETA, U0 = nets.rough(LAYERS), nets.state()
SINGLE = U0.astype(jnp.float32)
COMPLEX = jnp.asarray(1j)
WIDE = jnp.ones((3, 5))
SHORT = {**THETA, "b": THETA["b"][:-1]}
SCALAR = {**THETA, "s": jnp.ones(())}
NONE = jax.tree.map(lambda x: x[:0], THETA)
UNEQUAL, INFINITE = jnp.ones(LAYERS - 1), jnp.full(LAYERS, jnp.inf)
INTEGER = jnp.ones((3, 4), int)


def solve(**changed):
    return jm.solve(**{**dict(step=nets.tanh_step, theta=THETA, u0=U0, h=0.1), **changed})


def propagate(**changed):
    return jm.propagate(**{**dict(step=nets.tanh_step, theta=THETA, u0=U0, h=0.1), **changed})


def solver_named(**changed):
    return propagate(**{"solver": jm.MGRIT(4), **changed})


NETWORKS = {
    "unequal leading axes": (
        dict(theta=SHORT),
        ValueError,
        "theta['b']: 23",
        "theta['w']: 24",
        "N, the number of layers",
    ),
    "no leaves": (dict(theta={}), ValueError, "theta has no leaves", "leading axis N"),
    "a leaf without axes": (dict(theta=SCALAR), ValueError, "theta['s'] has no axes", "repeat it for every layer"),
    "a leaf that is no array": (
        dict(theta={**THETA, "s": [1.0]}),
        TypeError,
        "theta['s'][0]=1.0",
        "stack the layers' values",
    ),
    "no layers": (dict(theta=NONE), ValueError, "theta has 0 layers", "at least 1"),
    "an integer state": (dict(u0=INTEGER), TypeError, "u0", "int64", "floating point"),
    "no state": (dict(u0=None), ValueError, "u0 has no leaves", "floating-point arrays"),
    "a state that does not fit the layers": (dict(u0=WIDE), TypeError, "step", "float64[3, 5]"),
    "too few step sizes": (dict(h=UNEQUAL), ValueError, "h has shape (23,)", "shape (24,)"),
    "a step size that is not a number": (dict(h=float("nan")), ValueError, "h=nan", "T/N"),
    "infinite step sizes": (dict(h=INFINITE), ValueError, "h has entries that are not finite", "finite numbers"),
    "a step size of the wrong kind": (dict(h="0.1"), TypeError, "h='0.1'", "scalar or one step size per layer"),
    "no step size": (dict(h=None), TypeError, "h=None", "scalar or one step size per layer"),
    "a complex step size": (dict(h=COMPLEX), TypeError, "h has dtype complex128", "real numbers"),
    "no step": (dict(step=None), TypeError, "step=None", "step(theta, u, h) -> u_next"),
    "a step that changes the dtype": (
        dict(step=lambda t, u, h: nets.tanh_step(t, u, h).astype(jnp.float32)),
        TypeError,
        "step changes the state: it was given float64[3, 4] and returned float32[3, 4]",
        "convert to the state's dtype inside the step",
    ),
    "a step that changes the structure": (
        dict(step=lambda t, u, h: (u,)),
        TypeError,
        "given float64[3, 4] and returned ('float64[3, 4]',)",
        "put what changes them into the opening",
    ),
    "a step that changes the shape": (
        dict(step=lambda t, u, h: u[:, :2]),
        TypeError,
        "given float64[3, 4] and returned float64[3, 2]",
        "put what changes them into the opening",
    ),
    "a step that returns an output too": (
        dict(step=lambda t, u, h: (u, jnp.sum(u))),
        TypeError,
        "step returned a pair whose first entry is like the state",
        "jm.scan",
    ),
    "a list of layers": (
        dict(theta=[{"w": jnp.ones((4, 4)), "b": jnp.ones(4)}] * 3),
        TypeError,
        "a list of 3 layers, stack them",
        "jnp.stack",
    ),
    "a list of layers of unequal leading axes": (
        dict(theta=[{"w": jnp.ones((2, 4)), "b": jnp.ones(4)}] * 3),
        ValueError,
        "theta[0]['b']: 4",
        "a list of 3 layers, stack them",
    ),
    "a leaf that is not stacked": (
        dict(theta={**THETA, "w": jnp.ones((4, 4))}),
        ValueError,
        "theta['w']: 4",
        "theta['b']: 24",
    ),
    "parameters of one layer": (
        dict(theta={"w": jnp.ones((4, 4)), "b": jnp.ones(4)}),
        TypeError,
        "step cannot be evaluated with the parameters of one layer {'b': 'float64[]', 'w': 'float64[4]'}",
        "every leaf of the layers' parameters has the leading axis N",
    ),
    "layers by name": (
        dict(theta={f"layer {i}": {"w": jnp.ones((4, 4)), "b": jnp.ones(4)} for i in range(3)}),
        TypeError,
        "KeyError: 'w'",
        "a list of 3 layers, stack them",
    ),
    "a list of layers whose leaves are attributes": (
        dict(step=lambda t, u, h: u + h * t.w, theta=[{"w": jnp.ones((4, 4))}] * 3),
        TypeError,
        "no attribute 'w'",
        "a list of 3 layers, stack them",
    ),
    "a function among the parameters": (
        dict(theta={**THETA, "activation": jnp.tanh}),
        TypeError,
        "theta['activation']",
        "functions are not parameters",
        "equinox.partition",
    ),
    "a solver of the wrong kind": (dict(solver="V"), TypeError, "solver='V'", "jm.Newton(...) or jm.Sequential()"),
    "a coarse step that changes the shape": (
        dict(solver=jm.MGRIT(coarse_step=lambda step, theta, u, h, m: u[0])),
        TypeError,
        "coarse_step changes the state",
        "returned float64[4]",
    ),
    "coarse parameters that are not one layer's": (
        dict(solver=jm.MGRIT(coarse_params=lambda theta: theta)),
        TypeError,
        "coarse_params",
    ),
    "a norm that is no scalar": (
        dict(solver=jm.MGRIT(norm=lambda u: u)),
        TypeError,
        "norm must return one floating-point number (shape ())",
        "(3, 4)",
    ),
    "a jax mesh in the place of a backend": (dict(backend=nets.mesh(2).mesh), TypeError, "backend", "jm.Mesh"),
    "no backend": (dict(backend="cpu"), TypeError, "backend='cpu'", "jm.Local()"),
    "more devices than intervals": (
        dict(backend=nets.mesh(8)),
        ValueError,
        "24 layers in intervals of 4 are 6 intervals, fewer than the 8 devices",
        "at most 6 devices or a smaller coarsening factor",
    ),
}


@pytest.mark.parametrize("function", [solve, propagate, solver_named])
@pytest.mark.parametrize("case", NETWORKS)
def test_a_network_that_does_not_fit_together_is_refused(function, case):
    if function is propagate and case in ("an integer state", "no state"):
        pytest.skip("a plain scan carries what lax.scan carries")
    changed, kind, *parts = NETWORKS[case]
    with refused(kind, *parts):
        function(**changed)


def test_more_devices_than_segments_is_refused():
    theta = nets.rough(4)
    with refused(ValueError, "4 layers in intervals of 2 are 2 intervals, fewer than the 8 devices"):
        solve(theta=theta, solver=jm.Sequential(segment=2), backend=nets.mesh(8))


# --- what belongs to an earlier solve --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sol():
    return solve()


@pytest.fixture(scope="module")
def adj(sol):
    return jm.adjoint_solve(nets.tanh_step, THETA, sol, U0, h=0.1)


def adjoint(sol, **changed):
    return jm.adjoint_solve(**{**dict(step=nets.tanh_step, theta=THETA, sol=sol, lam_final=U0, h=0.1), **changed})


def test_a_guess_of_another_partition_is_refused(sol):
    expected = "expected CPoints(initial='float64[3, 4]', ends='float64[12, 3, 4]')"
    given = "given CPoints(initial='float64[3, 4]', ends='float64[6, 3, 4]')"
    with refused(ValueError, "guess does not fit", expected, given, "same coarsening factor and number of devices"):
        solve(guess=sol.c_points, solver=jm.MGRIT(2))
    with refused(ValueError, "guess does not fit", given, "same coarsening factor and number of devices"):
        adjoint(sol, guess=sol.c_points, solver=jm.MGRIT(2))


def test_a_solution_in_the_place_of_its_c_points_is_refused(sol):
    with refused(ValueError, "guess does not fit", "Give the c_points"):
        solve(guess=sol)


def test_a_final_adjoint_unlike_the_final_state_is_refused(sol):
    short = U0[:2]
    with refused(ValueError, "lam_final does not fit: expected float64[3, 4], given float64[2, 4]", "derivative"):
        adjoint(sol, lam_final=short)
    with refused(ValueError, "lam_final does not fit: expected float64[3, 4], given float32[3, 4]", "derivative"):
        adjoint(sol, lam_final=SINGLE)


@pytest.mark.parametrize("cost, kind, part", [(lambda t, u, h: u, TypeError, "(3, 4)"), ("none", TypeError, "'none'")])
def test_a_running_cost_that_is_no_scalar_function_is_refused(sol, cost, kind, part):
    with refused(kind, "running_cost", part, "scalar" if isinstance(cost, str) else "one floating-point number"):
        adjoint(sol, running_cost=cost)


def test_a_solution_of_another_network_is_refused(sol, adj):
    other = nets.rough(LAYERS + 1)
    with refused(ValueError, "sol belongs to a network of 24 layers, but theta has 25", "solve again"):
        adjoint(sol, theta=other)
    with refused(ValueError, "sol belongs to a network of 24 layers, but theta has 25", "solve again"):
        jm.layer_gradients(nets.tanh_step, other, sol, adj, h=0.1)
    with refused(ValueError, "sol belongs to a network of 24 layers, but theta has 25", "solve again"):
        jm.trajectory(nets.tanh_step, other, sol, h=0.1)


def test_a_solution_of_another_backend_is_refused(sol):
    with refused(ValueError, "sol was computed on 1 devices, but backend has 2", "pass the backend it was made with"):
        adjoint(sol, backend=nets.mesh(2))


def test_what_is_not_a_solution_is_refused_by_name(sol, adj):
    with refused(TypeError, "sol", "jm.solve"):
        adjoint(U0)
    with refused(TypeError, "adj", "jm.adjoint_solve"):
        jm.layer_gradients(nets.tanh_step, THETA, sol, U0, h=0.1)
    with refused(TypeError, "sol", "jm.solve"):
        jm.layer_gradients(nets.tanh_step, THETA, adj, sol, h=0.1)


# --- what happens at run time ----------------------------------------------------------------------------------------


def scale(theta, u, h):
    return theta * u


@pytest.mark.parametrize("tolerance", [None, 1e-8])
def test_a_solve_that_diverges_says_so_and_check_raises(tolerance):
    solver = jm.MGRIT(cycles=6, rtol=tolerance, coarse_step=lambda step, theta, u, h, m: 3.0 * u)
    sol = jm.solve(scale, jnp.linspace(0.9, 1.1, 128), jnp.ones(2), h=0.1, solver=solver)
    assert sol.result == jm.Result.DIVERGED
    with pytest.raises(jm.SolveError, match="diverged: the residual grew.*coarsen less, relax more") as caught:
        sol.check()
    assert caught.value.result is jm.Result.DIVERGED


@pytest.mark.parametrize("solver", [jm.MGRIT(), jm.MGRIT(rtol=1e-8), jm.Sequential()])
def test_a_solve_that_meets_nan_says_so_and_check_raises(solver):
    poisoned = {**THETA, "w": THETA["w"].at[17, 0, 0].set(jnp.nan)}
    sol = jm.solve(nets.tanh_step, poisoned, U0, h=0.1, solver=solver)
    assert sol.result == jm.Result.NOT_FINITE
    with pytest.raises(jm.SolveError, match="not finite.*look at the input, the parameters and the learning rate"):
        sol.check()


def test_an_adjoint_that_meets_nan_says_so(sol):
    adj = jm.adjoint_solve(nets.tanh_step, THETA, sol, U0.at[0, 0].set(jnp.nan), h=0.1)
    assert adj.result == jm.Result.NOT_FINITE
    with pytest.raises(jm.SolveError, match="not finite"):
        adj.check()


def test_check_of_several_codes_raises_the_worst_of_them():
    jm.check(jnp.asarray([0, 1, 1]))
    with pytest.raises(jm.SolveError, match="diverged"):
        jm.check(jnp.asarray([0, 2, 1]))
    with pytest.raises(jm.SolveError, match="All cycles were used"):
        jm.check(jnp.asarray([0, 1, 1]), tolerance=True)


def test_every_result_has_a_sentence():
    for result in jm.Result:
        assert re.fullmatch(r"[A-Z].*\.", result.sentence)


# --- training --------------------------------------------------------------------------------------------------------

PROBLEM, PARAMS, BATCH = nets.classification(LAYERS)
X, Y = BATCH
SGD = optax.sgd(0.1)
FEW = (X[:3], Y[:3])
NAN_X = X.at[0, 0].set(jnp.inf)
NAN_LAYERS = PARAMS._replace(layers={**PARAMS.layers, "b": PARAMS.layers["b"].at[3].set(jnp.nan)})
SHORT_LAYERS = PARAMS._replace(layers={**PARAMS.layers, "b": PARAMS.layers["b"][:3]})


@pytest.mark.parametrize("name", ["opening", "step", "loss", "running_cost", "penalty"])
def test_a_part_of_the_problem_that_is_no_function_is_refused(name):
    with refused(TypeError, f"Problem: {name}=3 is not a function"):
        dataclasses.replace(PROBLEM, **{name: 3})


TRAINERS = {
    "schedule": ("predict", "jm.CyclesThenGradient() or jm.PredictThenSweep()"),
    "solver": ("V", "jm.Newton(...) or jm.Sequential()"),
    "adjoint": (jm.MGRIT, "jm.Newton(...) or jm.Sequential()"),
    "optimizer": ("adam", "optax.adam(1e-2)"),
    "backend": ("cpu", "jm.Local()"),
}


@pytest.mark.parametrize("name", TRAINERS)
def test_a_part_of_the_trainer_of_the_wrong_kind_is_refused(name):
    value, remedy = TRAINERS[name]
    with refused(TypeError, f"OneShot: {name}={value!r}", remedy):
        jm.OneShot(**{**dict(problem=PROBLEM, optimizer=SGD), name: value})


def with_part(**changed):
    return dataclasses.replace(PROBLEM, **changed)


INITS = {
    "parameters that are no Params": (
        PROBLEM,
        tuple(PARAMS),
        BATCH,
        TypeError,
        "params is a tuple",
        "jm.Params(opening",
    ),
    "a batch that is no pair": (PROBLEM, PARAMS, [X, Y], TypeError, "batch", "(x, y)"),
    "layers of unequal number": (PROBLEM, SHORT_LAYERS, BATCH, ValueError, "params.layers['b']: 3", "number of layers"),
    "a loss without aux": (
        with_part(loss=lambda p, u, y: jnp.mean(u)),
        PARAMS,
        BATCH,
        TypeError,
        "loss must return (scalar, aux)",
    ),
    "a loss per sample": (
        with_part(loss=lambda p, u, y: (jnp.mean(u, axis=1), None)),
        PARAMS,
        BATCH,
        TypeError,
        "loss must return (scalar, aux)",
        "(12,)",
        "mean over the batch",
    ),
    "an integer loss": (
        with_part(loss=lambda p, u, y: (jnp.argmax(u), None)),
        PARAMS,
        BATCH,
        TypeError,
        "loss",
        "int64",
    ),
    "a penalty per layer": (with_part(penalty=lambda p: p.layers["b"]), PARAMS, BATCH, TypeError, "penalty", "(24, 4)"),
    "a running cost per sample": (
        with_part(running_cost=lambda t, u, h: u[:, 0]),
        PARAMS,
        BATCH,
        TypeError,
        "running_cost must return one floating-point number",
        "(12,)",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _warm_up():
    """Compile what the opening layer and the inspection of values need, so that the counts below are of training."""
    jm.OneShot(PROBLEM, SGD).init(PARAMS, BATCH)


@pytest.mark.parametrize("case", INITS)
def test_a_training_that_does_not_fit_together_is_refused(case):
    problem, params, batch, kind, *parts = INITS[case]
    with refused(kind, *parts):
        jm.OneShot(problem, SGD).init(params, batch)


def test_values_that_are_not_finite_are_refused_with_their_place_and_number():
    with refused(ValueError, "params.layers['b'] has 4 of 96 entries that are not finite", "initialisation"):
        jm.OneShot(PROBLEM, SGD).init(NAN_LAYERS, BATCH)
    with refused(ValueError, "batch[0] has 1 of 24 entries that are not finite", "clean the data"):
        jm.OneShot(PROBLEM, SGD).init(PARAMS, (NAN_X, Y))


def test_a_batch_of_another_size_than_the_warm_values_is_refused_as_such():
    trainer = jm.OneShot(PROBLEM, SGD)
    state = trainer.init(PARAMS, BATCH)
    with pytest.raises(ValueError, match="(?s)batch.*init"):
        trainer.step(state, FEW)


def test_training_that_meets_nan_reports_the_code():
    trainer = jm.OneShot(PROBLEM, SGD, jm.Sequential(), jm.Sequential())
    _, info = jax.jit(trainer.step)(trainer.init(PARAMS, BATCH), (NAN_X * 0.0, Y))
    assert info.result == jm.Result.NOT_FINITE


PREDICT = jm.PredictThenSweep()
SCHEDULES = {
    "a sequential solver": (dict(solver=jm.Sequential()), "solver=Sequential", "jm.CyclesThenGradient()"),
    "a tolerance": (dict(adjoint=jm.MGRIT(rtol=0.1)), "adjoint has rtol=0.1", "leave it at None"),
    "a skipped cycle": (dict(solver=jm.MGRIT(skip_first_down=True)), "skip_first_down=True", "leave it at False"),
    "different factors": (
        dict(solver=jm.MGRIT(4), adjoint=jm.MGRIT(2)),
        "state 3 level(s) with 4 layers per interval and the adjoint 5 with 2",
        "one coarsening factor for both",
    ),
    "one level": (dict(solver=jm.MGRIT(levels=1)), "1 level(s)", "at least two levels"),
}


@pytest.mark.parametrize("case", SCHEDULES)
def test_predict_then_sweep_refuses_what_it_cannot_honour(case):
    options, *parts = SCHEDULES[case]
    with refused(ValueError, "PredictThenSweep", *parts):
        jm.OneShot(PROBLEM, SGD, schedule=PREDICT, **options).init(PARAMS, BATCH)


def test_training_on_more_devices_than_intervals_is_refused():
    with refused(ValueError, "24 layers in intervals of 4 are 6 intervals, fewer than the 8 devices"):
        jm.OneShot(PROBLEM, SGD, backend=nets.mesh(8)).init(PARAMS, BATCH)
