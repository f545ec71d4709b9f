"""Advice: what is recommended keeps its promise, what misses the tolerance never is, and time is kept to."""

import functools
import math
import time

import jax
import jax.numpy as jnp
import pytest
from helpers import networks as nets
from helpers import recurrences

import jaxmgrit as jm
from jaxmgrit.analysis import advise as module
from jaxmgrit.analysis import candidates as tries
from jaxmgrit.analysis.candidates import MISSES, Layer, Row
from jaxmgrit.analysis.report import Report, table
from jaxmgrit.analysis.subject import Seen
from jaxmgrit.analysis.trials import Trials, message_seconds
from jaxmgrit.training.schedules.base import Setting

TOLERANCE = 1e-2
WEIGHTS = recurrences.gru_weights(2, 3)


def gru(x, u, h):
    return recurrences.gru(WEIGHTS, x, u)


# step, theta, u0, h, the candidates that are tried
NETWORKS = {
    "smooth": (nets.tanh_step, nets.smooth(64), nets.state(), 1 / 64, ("average, midpoint", "injection")),
    "rough": (nets.tanh_step, nets.rough(64, scale=1.0), nets.state(), 5 / 64, ("picard(2)", "average", "injection")),
    "gru": (gru, recurrences.inputs(128), jnp.zeros((3, 3)), 1.0, ("Newton", "relaxation only", "picard(1)")),
}


def only(monkeypatch, names):
    """Let just these candidates be tried: every one costs a few compilations."""

    def some(layers, u0, devices):
        return (c for c in tries.candidates(layers, u0, devices) if c.name in names)

    monkeypatch.setattr(module, "candidates", some)


@pytest.fixture(scope="module")
def advised():
    """From the name of a network to its advice, asked for once."""

    @functools.cache
    def advice(name):
        step, theta, u0, h, names = NETWORKS[name]
        with pytest.MonkeyPatch.context() as patch:
            only(patch, names)
            return jm.advise(step, theta, u0, h=h, tolerance=TOLERANCE, seconds=600, devices=(1, 2, 4))

    return advice


def gradient(f, theta, u0):
    return jax.jit(jax.grad(lambda theta, u0: jnp.mean(f(theta, u0) ** 2), argnums=(0, 1)))(theta, u0)


def off(a, b):
    """Relative Euclidean distance, as in the table."""
    a, b = (jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (a, b))
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_solver_of_the_table_has_the_error_it_promises_and_none_misses_the_tolerance(advised, name):
    step, theta, u0, h, names = NETWORKS[name]
    exact = gradient(lambda theta, u0: nets.scan(step, theta, u0, h), theta, u0)
    rows = advised(name).table
    assert len(rows) == 1 + len(names)
    for row in rows:
        assert (row.solver is None) == (row.adjoint is None) == bool(row.reason)
        if row.reason:
            assert row.error > TOLERANCE or not row.reason.startswith(MISSES)
            continue
        ours = gradient(
            lambda theta, u0, row=row: jm.propagate(step, theta, u0, h=h, solver=row.solver, adjoint=row.adjoint),
            theta,
            u0,
        )
        assert row.error <= TOLERANCE
        assert off(ours, exact) <= 1.01 * row.error + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_recommendation_is_the_fastest_of_those_within_the_tolerance_or_sequential(advised, name):
    advice = advised(name)
    (pick,) = (row for row in advice.table if row.solver == advice.solver and row.adjoint == advice.adjoint)
    usable = [row.seconds[1] for row in advice.table if row.solver is not None]
    assert pick.seconds[1] <= min(usable) / module.WORTH
    assert pick is advice.table[0] or pick.seconds[1] <= module.WORTH * advice.table[0].seconds[1]
    text = str(advice)
    assert isinstance(advice.schedule, jm.PredictThenSweep) == ("predict, then sweep" in text)
    assert all(row.name in text for row in advice.table) and all(sentence in text for sentence in advice.sentences)


def row(advice, name):
    return next(row for row in advice.table if row.name.startswith(name))


@pytest.mark.slow
def test_smooth_and_rough_layers_and_networks_that_forget_are_told_apart(advised):
    said = {name: " ".join(advised(name).sentences) for name in NETWORKS}
    assert "smooth in depth" in said["smooth"] and "rough in depth" in said["rough"]
    assert "forgets" in said["gru"] and "forgets" not in said["rough"]
    assert row(advised("rough"), "picard(2)").state_factor < 0.1 * row(advised("rough"), "injection").state_factor
    assert row(advised("smooth"), "average, midpoint").solver is not None
    assert row(advised("gru"), "Newton").error < 1e-6
    assert row(advised("gru"), "picard(1)").solver is None  # a cell of a recurrence is no small increment


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_times_on_more_devices_are_those_of_sequential_or_fall(advised, name):
    sequential, *others = advised(name).table
    assert len(set(sequential.seconds.values())) == 1 and set(sequential.seconds) == {1, 2, 4}
    for other in others:
        assert all(x > 0 for x in other.seconds.values())


def test_a_fast_candidate_that_misses_the_tolerance_is_dropped(monkeypatch):
    step, theta, u0, h, _ = NETWORKS["rough"]
    only(monkeypatch, ("relaxation only",))
    monkeypatch.setattr(Trials, "sequentially", slow(Trials.sequentially))
    advice = jm.advise(step, theta, u0, h=h, seconds=600, devices=(1,))
    assert advice.table[1].seconds[1] < advice.table[0].seconds[1]  # it would be faster
    assert isinstance(advice.solver, jm.Sequential) and advice.table[1].solver is None
    assert "Dropped" in str(advice)


def slow(sequentially):
    def slower(trials):
        first = sequentially(trials)
        trials.calls["sequential"] = lambda: time.sleep(0.05)
        trials.sequential = 10.0
        return first._replace(seconds=dict.fromkeys(first.seconds, 10.0))

    return slower


def test_where_time_is_short_one_sequential_program_is_measured_and_the_rest_is_named():
    step, theta, u0, h, _ = NETWORKS["rough"]
    advice = jm.advise(step, theta, u0, h=h, seconds=1e-3)
    assert isinstance(advice.solver, jm.Sequential) and isinstance(advice.adjoint, jm.Sequential)
    assert all(row.solver is None and not row.seconds for row in advice.table[1:]) and len(advice.table) > 5
    assert "give more seconds" in str(advice) and "nothing else was measured" in str(advice)


def test_no_program_is_begun_that_would_not_end_in_time(monkeypatch):
    now, begun = [0.0], []

    class Clock:
        def has(self, seconds):
            return now[0] + seconds < 10.0

    def look(self, solver, adjoint):
        begun.append(now[0])
        now[0] += 3.0
        self.longest = 3.0
        raise ValueError("not measured")

    step, theta, u0, h, _ = NETWORKS["rough"]
    monkeypatch.setattr(Trials, "look", look)
    trials = Trials(module._subject(step, theta, u0, h, jnp.sum, jm.Local()), Clock(), 0.01, (1,), 1e-5, 1e10)
    rows = [trials.of(candidate) for candidate in tries.candidates(64, u0, 1)]
    assert begun == [0.0, 3.0, 6.0]
    assert [bool(row.reason) for row in rows] == [True] * len(rows)


def test_the_share_of_one_device_is_measured_of_the_fastest_candidate_also_where_sequential_is_faster(monkeypatch):
    step, theta, u0, h, _ = NETWORKS["rough"]
    looked = []

    def look(self, solver, adjoint, subject=None):
        looked.append((solver, subject.layers))
        return Seen(None, ([], []), 4e-3, 0.0, lambda: None)

    monkeypatch.setattr(Trials, "look", look)
    monkeypatch.setattr(Trials, "has_time", lambda self, solver=None: True)
    trials = Trials(module._subject(step, theta, u0, h, jnp.sum, jm.Local()), None, 0.01, (1, 2), 1e-4, 1e10)
    trials.layer = Layer(1e-5, 2e-5)
    slow, fast = (jm.MGRIT(8, levels=2, cycles=1, coarse_params=params) for params in (jm.average, jm.injection))
    trials.candidates = {name: tries.Candidate(name, s, s) for name, s in (("slow", slow), ("fast", fast))}
    rows = [Row("sequential", jm.Sequential(), jm.Sequential(), seconds={1: 1e-3, 2: 1e-3})]
    rows += [Row(name, s, s, seconds={1: x, 2: x}) for name, s, x in (("slow", slow, 9e-3), ("fast", fast, 8e-3))]
    refined = trials.refine(rows)
    assert looked == [(fast, 32)] and refined[:2] == rows[:2]
    # The coarse steps of the other half, there and back, and messages.
    sent = message_seconds(theta, u0, 64, (fast, fast), 2, 1e-4, 1e10)
    assert refined[2].seconds == {1: 8e-3, 2: pytest.approx(4e-3 + 4 * 4e-5 + sent)} and sent > 3e-4


def test_weights_that_the_step_closes_over_are_part_of_the_gradient():
    step, theta, u0, h, _ = NETWORKS["gru"]
    subject = module._subject(step, theta, u0, h, lambda u: jnp.mean(u**2), jm.Local())
    ours = subject.look(jm.Sequential(16), jm.Newton(16)).gradient[2]

    def loss(weights):
        final = nets.scan(lambda x, u, h: recurrences.gru(weights, x, u), theta, u0, h)
        return jnp.mean(final**2)

    exact = jax.tree.leaves(jax.grad(loss)(WEIGHTS))
    assert sorted(x.shape for x in ours) == sorted(x.shape for x in exact)
    for x in ours:
        assert min(off(x, y) for y in exact if x.shape == y.shape) < 1e-12


@pytest.mark.slow
def test_single_precision_step_sizes_per_layer_and_leaves_without_derivative(monkeypatch):
    only(monkeypatch, ("average",))
    theta = {**jax.tree.map(lambda x: x.astype("float32"), nets.smooth(32)), "kind": jnp.arange(32, dtype="int32")}
    h = nets.steps_of_unequal_size(32, 1.0).astype("float32")

    def step(p, u, h):
        return {"u": nets.tanh_step(p, u["u"], h)}

    u0 = {"u": nets.state().astype("float32")}
    advice = jm.advise(step, theta, u0, h=h, seconds=600, devices=(1,), loss=lambda u: jnp.sum(u["u"]))
    assert advice.table[1].error <= 0.01
    final = jm.propagate(step, theta, u0, h=h, solver=advice.solver, adjoint=advice.adjoint)
    assert final["u"].dtype == jnp.float32


def test_few_layers_are_sequential():
    advice = jm.advise(nets.tanh_step, nets.rough(3), nets.state(), h=0.1, seconds=600)
    assert len(advice.table) == 1 and "too few layers" in str(advice)


@pytest.mark.slow
def test_on_several_devices_the_backend_itself_is_measured(monkeypatch):
    only(monkeypatch, ("average, midpoint",))
    step, theta, u0, h, _ = NETWORKS["smooth"]
    backend = nets.mesh(2)
    advice = jm.advise(step, theta, u0, h=h, seconds=600, devices=(1, 4), backend=backend)
    assert set(advice.table[1].seconds) == {1, 2, 4}
    exact = gradient(lambda theta, u0: nets.scan(step, theta, u0, h), theta, u0)
    for pick in advice.table:
        ours = gradient(
            lambda theta, u0, pick=pick: jm.propagate(
                step, theta, u0, h=h, solver=pick.solver, adjoint=pick.adjoint, backend=backend
            ),
            theta,
            u0,
        )
        assert off(ours, exact) <= 1.01 * pick.error + 1e-9


def test_a_backend_tells_the_first_process_number():
    assert jm.Local().agreed(0.25) == 0.25
    assert nets.mesh(2).agreed(0.25) == 0.25


@pytest.mark.parametrize(
    "roughness, solver, predicts",
    [
        (0.05, jm.MGRIT(8, levels=2, cycles=2, coarse_params=jm.average, coarse_step=jm.midpoint), True),
        (1.4, jm.MGRIT(8, levels=2, cycles=2, coarse_params=jm.average, coarse_step=jm.midpoint), False),
        (0.05, jm.MGRIT(8, levels=2, cycles=4), False),
        (0.05, jm.MGRIT(8, levels=2, cycles=1, coarse_step=jm.zero_step), False),
        (0.05, jm.Newton(8), False),
        (None, jm.MGRIT(8, levels=2, cycles=1), False),
    ],
)
def test_smooth_layers_with_a_coarse_problem_are_to_be_predicted_and_the_schedule_takes_the_solver(
    roughness, solver, predicts
):
    rows = [Row("sequential", jm.Sequential(), jm.Sequential(), 0.0, 0.0, 0.0, {1: 2e-3})]
    rows += [Row("other", solver, solver, 1e-3, 0.1, 0.1, {1: 1e-3})]
    report = Report(rows, 1, 64, Layer(1e-5, 2e-5), roughness, 1, TOLERANCE, 2e-5, 1e10)
    assert report.predicts == predicts == any("predict, then sweep" in sentence for sentence in report.sentences())
    if predicts:
        assert jm.PredictThenSweep().level(64, Setting(solver, solver, jm.Local())).factor == 8


def test_tables_show_what_is_missing_as_a_dash():
    rows = [Row("sequential", jm.Sequential(), jm.Sequential(), 0.0, 0.0, 0.0, {1: 1e-3}), Row("other", None, None)]
    assert table(rows).splitlines()[-1].split() == ["other", "-", "-", "-", "-"]
    assert math.isnan(Layer(1.0, 1.0).wide)


def test_sequential_with_one_segment_is_the_plain_program():
    step, theta, u0, h, _ = NETWORKS["rough"]

    def program(**options):
        return str(jax.make_jaxpr(jax.grad(lambda t: jnp.sum(jm.propagate(step, t, u0, h=h, **options))))(theta))

    assert (
        program(solver=jm.Sequential(64), adjoint=jm.Sequential(64)) == program() == program(solver=jm.Sequential(99))
    )
    assert program(solver=jm.Sequential(32)) != program()


GOOD = dict(step=nets.tanh_step, theta=nets.rough(8), u0=nets.state(), h=0.1)
BAD = {
    "step": (dict(step=3), TypeError, "step=3 is not a function"),
    "loss": (dict(loss=3), TypeError, "loss=3 is not a function"),
    "a loss that is no scalar": (dict(loss=lambda u: u), TypeError, "loss must return one floating-point number"),
    "theta and u0": (dict(u0=nets.state(width=7)), TypeError, "step cannot be evaluated"),
    "integers": (dict(u0=jnp.ones((3, 4), int)), TypeError, "must be floating point"),
    "not finite": (dict(u0=nets.state() * jnp.nan), ValueError, "u0.* not finite"),
    "h": (dict(h=jnp.ones(5)), ValueError, "h has shape"),
    "one number of devices": (dict(devices=4), TypeError, "devices=4 is not a sequence"),
    "devices": (dict(devices=(1, 0)), ValueError, r"devices=\(1, 0\)"),
    "no devices": (dict(devices=()), ValueError, "devices"),
    "tolerance": (dict(tolerance=0.0), ValueError, "tolerance=0.0"),
    "seconds": (dict(seconds=-1), ValueError, "seconds=-1"),
    "seconds in words": (dict(seconds="60"), ValueError, "seconds='60'"),
    "backend": (dict(backend="mesh"), TypeError, "backend='mesh'"),
    "latency": (dict(latency=math.inf), ValueError, "latency=inf"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    changed, kind, message = BAD[case]
    options = {**GOOD, **changed}
    with pytest.raises(kind, match=message):
        jm.advise(options.pop("step"), options.pop("theta"), options.pop("u0"), **options)


def test_traced_arguments_are_refused():
    with pytest.raises(TypeError, match="theta is traced; call advise outside jit"):
        jax.jit(lambda theta: jm.advise(nets.tanh_step, theta, nets.state(), h=0.1).table[0].error)(nets.rough(8))
