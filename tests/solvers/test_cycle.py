"""Cycles against the method done by hand: the same values at every point and the same residuals, cycle by cycle."""

from functools import lru_cache
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import by_hand
from helpers import networks as nets

import jaxmgrit as jm

FINAL_TIME = 2.0
FIRST, LAST = itemgetter(0), itemgetter(-1)


def last_layer(theta):
    return jax.tree.map(LAST, theta)


def largest_entry(u):
    return jnp.max(jnp.abs(u))


def mean(x):
    return x.mean(axis=0)


AVERAGED_MIDPOINT = dict(coarse_params=jm.average, coarse_step=jm.midpoint)

# Name: layers, factors of all levels but the coarsest, options of MGRIT, whether with h per layer and a running cost.
CASES = {
    "all levels, V": (23, (2, 2, 2), dict(coarsening_factor=2), False),
    "FCF, F-cycle": (23, (3, 2), dict(coarsening_factor=(3, 2), cf_relaxations=(1, 1), cycle="F"), True),
    "FCFCF above, F below, F-cycle, skipped": (
        29,
        (2, 3),
        dict(coarsening_factor=(2, 3), cf_relaxations=(2, 0), cycle="F", skip_first_down=True),
        True,
    ),
    "four levels, F-cycle": (33, (2, 2, 2), dict(coarsening_factor=2, levels=4, cycle="F"), False),
    "four levels, F-cycle, skipped": (16, (2, 2, 2), dict(coarsening_factor=2, cycle="F", skip_first_down=True), False),
    "skipped, V": (17, (2, 2), dict(coarsening_factor=(2, 2), skip_first_down=True), True),
    "down to one step": (16, (2, 2, 2, 2), dict(coarsening_factor=2, min_coarse=1), False),
    "two levels, averaged midpoint": (30, (4,), dict(coarsening_factor=4, levels=2, **AVERAGED_MIDPOINT), True),
    "four levels, averaged midpoint": (43, (3, 2, 2), dict(coarsening_factor=(3, 2, 2), **AVERAGED_MIDPOINT), True),
    "weight 0.7, three levels": (27, (3, 3), dict(coarsening_factor=3, levels=3, relaxation_weight=0.7), False),
    "weight 1.3, FCF above, F-cycle": (
        26,
        (2, 3),
        dict(coarsening_factor=(2, 3), cf_relaxations=(1, 1), cycle="F", relaxation_weight=1.3),
        True,
    ),
    "a user's parameters and norm": (
        26,
        (4,),
        dict(coarsening_factor=(4,), coarse_params=last_layer, norm=largest_entry),
        False,
    ),
}
MATRIX = nets.slow_but(["weight 0.7, three levels"], CASES)


@lru_cache
def both(case):
    layers, factors, options, general = CASES[case]
    solver = jm.MGRIT(cycles=3, **options)
    theta, u0 = nets.rough(layers), nets.state()
    h = nets.steps_of_unequal_size(layers, FINAL_TIME) if general else FINAL_TIME / layers
    cost = nets.tanh_cost if general else None
    expected = by_hand.run(
        theta,
        u0,
        h,
        factors,
        nu=solver.cf_relaxations,
        kind=solver.cycle,
        cycles=solver.cycles,
        skip=solver.skip_first_down,
        combine={jm.injection: FIRST, jm.average: mean, last_layer: LAST}[solver.coarse_params],
        midpoint=solver.coarse_step is jm.midpoint,
        cost_derivative=(lambda u, h: 0.2 * h * u) if general else None,
        norm=by_hand.frobenius if solver.norm is None else lambda r: np.abs(r).max(),
        weight=solver.relaxation_weight,
    )
    sol, adj, _ = nets.solved(nets.tanh_step, theta, u0, h, solver, cost=cost)
    states = jm.trajectory(nets.tanh_step, theta, sol, h=h)
    adjoints = jm.adjoint_trajectory(nets.tanh_step, theta, sol, adj, h=h, running_cost=cost)
    return (sol, states, adj, adjoints), expected


@pytest.mark.parametrize("case", MATRIX)
def test_state_and_residuals_are_those_of_the_method_done_by_hand(case):
    (sol, states, _, _), (expected, norms, _, _) = both(case)
    np.testing.assert_allclose(sol.residual_norms, norms, rtol=1e-12)
    assert nets.distance(states, expected) < 1e-14
    assert nets.distance(sol.u_final, expected[-1]) < 1e-14


@pytest.mark.parametrize("case", MATRIX)
def test_adjoint_and_residuals_are_those_of_the_method_done_by_hand(case):
    (_, _, adj, adjoints), (_, _, expected, norms) = both(case)
    np.testing.assert_allclose(adj.residual_norms, norms, rtol=1e-12)
    assert nets.distance(adjoints, expected) < 1e-14
    assert nets.distance(adj.lam_initial, expected[0]) < 1e-14
