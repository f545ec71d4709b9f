"""The control of inexactness: what is measured, and what is decided from it."""

import jax
import numpy as np
import optax
import pytest
from helpers import networks as nets

import jaxmgrit as jm
from jaxmgrit.analysis.control import (
    EXACT,
    SETTLED,
    Control,
    ControlState,
    Measured,
    confirm,
    decide,
    follow,
    is_due,
    observe,
)

LADDER = [1, 2, 4, None]
CONTROL = Control(tolerance=0.1, min_cosine=0.9, soon=5, longest=40)
START = ControlState()
GOOD = Measured(0.999, 0.04, 0.3, 0.4)


def decided(measured, state=START, iteration=100):
    return decide(CONTROL, state, iteration, measured, LADDER)


def test_while_all_is_well_comparisons_become_rare_and_the_rung_stays():
    state, checks = ControlState(), []
    for _ in range(6):
        checks.append(state.check)
        state, reason = decided(GOOD, state, state.check)
        assert (state.rung, reason) == (0, "")
    assert np.diff(checks).tolist() == [5, 10, 20, 40, 40]


@pytest.mark.parametrize(
    ("measured", "rung", "reason"),
    [
        (Measured(0.99, 0.15, 0.3, 0.2), 1, "relative distance 0.15 of the inexact from the exact gradient, above 0.1"),
        (Measured(0.95, 0.3, 0.5, 0.2), 2, "relative distance 0.3"),  # 0.3 * 0.5^3 with 4 cycles
        (Measured(0.95, 0.3, 0.9, 0.2), 3, "relative distance 0.3"),  # no number of cycles helps
        (Measured(0.8, 0.09, 0.3, 0.2), 1, "cosine 0.80 between inexact and exact gradient, below 0.9"),
        (Measured(-0.1, 1.5, 1.2, 0.2), 1, "the inexact gradient is no descent direction: cosine -0.10"),
        (Measured(0.999, 0.05, 0.3, 1.3), 1, "the adjoint's cycles do not converge: factor 1.3"),
        (Measured(0.999, 0.05, 1.1, 0.3), 1, "the state's cycles do not converge: factor 1.1"),
        (Measured(0.99, float("nan"), 0.5, 0.5), 1, "the comparison with the exact gradient is not finite"),
    ],
)
def test_an_inexact_gradient_means_as_many_more_cycles_as_convergence_promises(measured, rung, reason):
    state, why = decided(measured)
    assert state.rung == rung
    assert why.startswith(reason)
    assert is_due(CONTROL, state, 100)  # the new rung is looked at before it is used


def test_cycles_that_stand_still_at_rounding_do_no_harm():
    assert decided(Measured(1.0, 1e-6, 1.01, 1.2))[1] == ""


def test_a_cheaper_solver_is_tried_when_it_pays_and_taken_back_where_it_fails():
    exact = ControlState(rung=3, check=100, since=0)
    trial, reason = decided(EXACT, exact)
    assert (trial.rung, trial.origin, trial.check) == (0, 3, 100)
    assert reason == "sequential sweeps have been done for a while"
    back, reason = decided(Measured(0.5, 2.0, 1.5, 0.5), trial)
    assert (back.rung, back.patience) == (3, 2 * exact.patience)
    assert "cosine 0.50" in reason
    between, _ = decided(Measured(0.95, 0.3, 0.5, 0.2), trial)
    assert between.rung == 2
    kept, reason = decided(GOOD, trial)
    assert (kept.rung, reason) == (0, "")


def test_one_rung_down_needs_the_convergence_that_promises_it():
    assert decided(Measured(1.0, 0.001, 0.1, 0.1), ControlState(rung=1))[0].rung == 0  # 0.001 / 0.1^0.5
    assert decided(Measured(1.0, 0.04, 0.1, 0.1), ControlState(rung=1))[0].rung == 1
    assert decided(Measured(1.0, 0.001, 0.1, 0.1), ControlState(rung=1, since=95))[0].rung == 1  # too soon


def test_failing_soon_after_a_trial_also_makes_the_next_one_later():
    trial = ControlState(rung=0, origin=3, since=95, check=100)
    failed, _ = decided(Measured(0.5, 2.0, 1.5, 0.5), trial)
    assert (failed.rung, failed.patience) == (3, 40)


def test_a_rising_objective_raises_the_alarm():
    state, _ = decided(GOOD, ControlState(interval=20))
    for objective in (2.0, 1.0, 1.4):
        state = observe(state, objective)
        assert not is_due(CONTROL, state, 110)
    state = observe(state, 1.6)
    assert is_due(CONTROL, state, 110)
    assert not is_due(CONTROL, state, 104)  # it has just been compared


SWEEPS = [3, 4, 5, None]  # picard(2), picard(3), picard(4), sequential
CALIBRATED = ControlState(check=500, mismatch=1e-4, error=100.0)  # a relative distance of 0.01


def followed(iterations, mismatch, state=CALIBRATED):
    """Rungs after iterations of one mismatch, and the state."""
    rungs = []
    for i in iterations:
        state, _ = follow(CONTROL, observe(state, 1.0, mismatch, 1.0), i, top=3)
        rungs.append(state.rung)
    return rungs, state


def test_a_mismatch_that_grows_climbs_by_itself_rung_by_rung_and_asks_before_going_serial():
    assert followed(range(100, 120), 1e-4)[0] == [0] * 20
    rungs, state = followed(range(100, 120), 1e-2)
    assert rungs == [1] * SETTLED + [2] * (20 - SETTLED)
    assert (state.rung, state.check) == (2, 119)  # sequential sweeps only after a comparison
    after, reason = confirm(CONTROL, state, 119, Measured(0.5, 1.0, 0.9, 0.9), SWEEPS)
    assert SWEEPS[after.rung] is None and "cosine 0.50" in reason
    kept, reason = confirm(CONTROL, state, 119, Measured(1.0, 0.01, 0.1, 0.1), SWEEPS)
    assert (kept.rung, reason) == (2, "")
    assert kept.error == pytest.approx(0.01 / state.mismatch)  # the error of a mismatch is learnt anew


def test_a_mismatch_that_shrinks_comes_down_after_a_while_and_is_confirmed():
    rungs, state = followed(range(100, 125), 1e-6, CALIBRATED._replace(rung=2, since=95))
    assert rungs == [2] * 15 + [1] * 10
    assert (state.check, state.origin) == (115 + SETTLED, 2)
    assert followed(range(100, 125), 3e-4, CALIBRATED._replace(rung=2, since=95))[0] == [2] * 25  # no hope


CYCLES = [3, 4, 5, 10, 20, None]  # as SWEEPS, and between them and sequential sweeps 2 and 4 cycles of picard(4)


def test_behind_the_most_sweeps_a_comparison_leads_to_more_cycles_if_they_converge_and_else_to_sequential_sweeps():
    state = CALIBRATED._replace(rung=2, since=95)
    asked, reason = follow(CONTROL, observe(state, 1.0, 1e-2, 1.0), 100, top=5, most_swept=2)
    assert (asked.rung, asked.check, reason) == (2, 100, "")
    far_off = Measured(0.95, 0.3, 0.4, 0.5)
    more, reason = confirm(CONTROL, asked, 100, far_off, CYCLES, most_swept=2)
    assert (more.rung, more.check) == (3, 100 + SETTLED) and "relative distance 0.3" in reason
    for factors in ((1.1, 0.5), (0.5, 1.0)):
        after, _ = confirm(CONTROL, asked, 100, Measured(0.95, 0.3, *factors), CYCLES, most_swept=2)
        assert CYCLES[after.rung] is None
    # The mismatch alone never climbs from there, but comes down.
    again, _ = follow(CONTROL, observe(more._replace(error=100.0), 1.0, 1.0, 1.0), 110, top=5, most_swept=2)
    assert (again.rung, again.check) == (3, 110)
    less, reason = follow(CONTROL, observe(more._replace(error=100.0), 1.0, 1e-6, 1.0), 130, top=5, most_swept=2)
    assert (less.rung, less.origin) == (2, 3) and "one rung less" in reason
    # Sequential sweeps are left for the most Picard sweeps.
    serial = ControlState(rung=5, check=100, since=0, error=1.0)
    assert confirm(CONTROL, serial, 100, EXACT, CYCLES, most_swept=2)[0].rung == 2


def test_a_gradient_near_zero_may_be_imprecise():
    far_off = Measured(0.3, 1.0, 0.3, 0.3)
    for grad_norm, rung in ((1.0, 1), (0.02, 1), (0.002, 0)):
        state = observe(observe(CALIBRATED, 1.0, 1e-4, 1.0), 1.0, 1e-4, grad_norm)
        assert confirm(CONTROL, state, 100, far_off, SWEEPS)[0].rung == rung


def test_sequential_sweeps_are_left_for_the_most_exact_rung_below():
    serial = ControlState(rung=3, check=100, since=0, error=1.0)
    trial, reason = confirm(CONTROL, serial, 100, EXACT, SWEEPS)
    assert (trial.rung, trial.origin, trial.check) == (2, 3, 100) and reason
    assert confirm(CONTROL, trial, 100, Measured(0.5, 2.0, 1.5, 0.5), SWEEPS)[0].rung == 3
    assert confirm(CONTROL, trial, 100, GOOD, SWEEPS)[0].rung == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"near_zero": 1.0}, "near_zero=1.0 is out of range; give a number >= 0 and below 1"),
        ({"tolerance": 0.0}, "tolerance=0.0 is out of range; give a number > 0"),
        ({"min_cosine": 1.0}, "min_cosine=1.0 is out of range; give a number between 0 and 1"),
        ({"soon": 0}, "soon=0"),
        ({"soon": 10, "longest": 5}, "longest=5 is out of range; give a number >= soon = 10"),
        ({"alarm": 1.0}, "alarm=1.0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Control(**options)


# --- what is measured ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compare_measures_angle_distance_and_convergence():
    """Against the gradient by plain JAX; the factors by doing the solves of the method once more."""
    problem, params, batch = nets.classification(22, penalty=nets.penalty)
    solver = jm.MGRIT(4, cycles=1)
    trainer = jm.OneShot(problem, nets.recording(), solver, solver, backend=nets.mesh(2))
    state, infos = trainer.init(params, batch), []
    measured = jax.jit(lambda s: jm.compare(trainer, s, batch))(state)
    update = jax.jit(trainer.step)
    first, info = update(state, batch)
    infos = [info, update(first, batch)[1]]
    inexact = trainer.export(first).optimizer
    exact = jax.grad(lambda p: nets.exact_objective(problem, p, batch))(params)
    norm = optax.tree.norm(exact)
    np.testing.assert_allclose(measured.distance, optax.tree.norm(optax.tree.sub(inexact, exact)) / norm, rtol=1e-10)
    cosine = optax.tree.vdot(inexact, exact) / norm / optax.tree.norm(inexact)
    np.testing.assert_allclose(measured.cosine, cosine, rtol=1e-10)
    np.testing.assert_allclose(measured.factor, infos[1].residual_norm / infos[0].residual_norm, rtol=1e-10)
    np.testing.assert_allclose(
        measured.adjoint_factor, infos[1].adjoint_residual_norm / infos[0].adjoint_residual_norm, rtol=1e-10
    )
    assert 0.01 < measured.distance < 1  # or the test would not tell


def test_exact_gradients_are_at_distance_zero():
    problem, params, batch = nets.classification(22)
    trainer = jm.OneShot(problem, nets.recording(), jm.Sequential(4), jm.Sequential(4))
    # One program: outside jit every operation would be compiled by itself.
    measured = jax.jit(lambda state: jm.compare(trainer, state, batch))(trainer.init(params, batch))
    np.testing.assert_allclose(measured, (1.0, 0.0, 0.0, 0.0), atol=1e-12)
