"""Backtracking by itself, on functions of one variable."""

import jax.numpy as jnp
import pytest

from jaxmgrit.training.quasi_newton.line_search import backtrack


def search(f, c1, most=20, wanted=True):
    """From x = 1 along -f' = -1 with slope 1: trials of f(1 - alpha)."""
    return backtrack(
        lambda alpha, left: (f(1.0 - alpha), left + 1),
        jnp.zeros((), int),
        f(jnp.asarray(1.0)),
        jnp.asarray(1.0),
        initial_step=1.0,
        c1=c1,
        most=most,
        wanted=jnp.asarray(wanted),
        agree=lambda x: x,
    )


@pytest.mark.parametrize("c1, step", [(1e-4, 1.0), (0.45, 1.0), (0.6, 0.5), (0.9, 0.125)])
def test_a_step_must_lower_the_objective_by_c1_of_what_the_slope_promises(c1, step):
    # f(1 - alpha) = 1/2 - alpha + alpha^2 / 2 lowers by alpha (1 - alpha / 2): enough for alpha <= 2 (1 - c1).
    actual = search(lambda x: 0.5 * x**2, c1)
    assert actual.accepted and actual.step_size == step
    assert int(actual.left) == int(actual.trials)


def test_a_search_ends_after_the_allowed_trials_and_values_that_are_not_finite_are_refused():
    actual = search(lambda x: jnp.where(x < 1, jnp.nan, x), 1e-4, most=3)
    assert not actual.accepted and actual.trials == 3
    assert search(lambda x: x, 1e-4, wanted=False).trials == 0
