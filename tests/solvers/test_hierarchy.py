"""Levels, intervals and padding: the rule of the method, and that every step has exactly one slot."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmgrit as jm


def points(layers, **options):
    return [level.steps + 1 for level in jm.MGRIT(**options).hierarchy(layers)]


@pytest.mark.parametrize(
    "layers, options, expected",
    [
        (16, dict(coarsening_factor=4), [17, 5]),
        (16, dict(coarsening_factor=4, min_coarse=1), [17, 5, 2]),
        (16, dict(coarsening_factor=2), [17, 9, 5, 3]),
        (16, dict(coarsening_factor=2, min_coarse=0), [17, 9, 5, 3, 2]),
        (16, dict(coarsening_factor=2, min_coarse=5), [17, 9]),
        (16, dict(coarsening_factor=2, levels=3), [17, 9, 5]),
        (16, dict(coarsening_factor=2, levels=1), [17]),
        (16, dict(coarsening_factor=(4, 2)), [17, 5, 3]),
        (64, dict(coarsening_factor=(4,)), [65, 17]),
        (64, dict(coarsening_factor=(4, 2, 2)), [65, 17, 9, 5]),
        (64, dict(coarsening_factor=(4, 2, 2), levels=2), [65, 17]),
        (203, dict(coarsening_factor=4), [204, 51, 13, 4]),
        (203, dict(coarsening_factor=4, min_coarse=4), [204, 51, 13]),
        (7, dict(coarsening_factor=4), [8]),
        (8, dict(coarsening_factor=4), [9, 3]),
        (7, dict(coarsening_factor=4, min_coarse=1), [8, 2]),
        (3, dict(coarsening_factor=4, min_coarse=0), [4]),
        (1, dict(coarsening_factor=2, min_coarse=0), [2]),
    ],
)
def test_points_per_level_follow_from_factors_levels_and_min_coarse(layers, options, expected):
    assert points(layers, **options) == expected


@given(
    layers=st.integers(1, 300),
    factors=st.lists(st.integers(2, 6), min_size=1, max_size=4).map(tuple),
    levels=st.none() | st.integers(1, 5),
    min_coarse=st.integers(0, 6),
)
def test_a_coarser_level_exists_if_and_only_if_the_rule_allows_it(layers, factors, levels, min_coarse):
    found = jm.MGRIT(factors, levels=levels, min_coarse=min_coarse).hierarchy(layers)
    n, expected = layers, [layers]
    for m in factors:
        n = n // m
        if n < max(1, min_coarse) or (levels is not None and len(expected) >= levels):
            break
        expected.append(n)
    assert [level.steps for level in found] == expected
    assert [level.stride for level in found] == [int(np.prod(factors[:k])) for k in range(len(expected))]


solvers = st.builds(
    jm.MGRIT,
    coarsening_factor=st.lists(st.integers(2, 5), min_size=1, max_size=3).map(tuple),
    min_coarse=st.integers(0, 3),
)


@settings(deadline=None, max_examples=20)
@given(
    layers=st.integers(1, 300),
    solver=solvers | st.just(jm.Sequential()),
    devices=st.sampled_from([1, 2, 4, 8]),
    front=st.booleans(),
)
def test_every_step_has_one_slot_and_every_device_an_equal_share(layers, solver, devices, front):
    try:
        levels = solver.hierarchy(layers, devices, front=front)
    except ValueError as error:
        assert "fewer than the" in str(error)
        return
    for level in levels:
        masks = [level.slot_mask(np.int32(d)) for d in range(level.devices)]
        whole = np.ones((level.share, level.factor), bool)
        inside = np.concatenate([whole if mask is None else np.asarray(mask) for mask in masks]).reshape(-1)
        assert inside.size == level.slots == level.devices * level.share * level.factor
        assert inside.sum() == level.steps
        # One run of steps, padded at one end only.
        steps = np.flatnonzero(inside)
        assert (np.diff(steps) == 1).all()
        assert (steps[-1] == level.slots - 1) if front else (steps[0] == 0)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(layers=st.integers(1, 300), solver=solvers, devices=st.sampled_from([1, 2, 4, 8]), front=st.booleans())
def test_complete_intervals_are_the_steps_of_the_next_level(layers, solver, devices, front):
    try:
        levels = solver.hierarchy(layers, devices, front=front)
    except ValueError:
        return
    for level, below in zip(levels[:-1], levels[1:], strict=True):
        masks = [level.complete_mask(np.int32(d)) for d in range(level.devices)]
        complete = sum(level.share if mask is None else int(np.sum(mask)) for mask in masks)
        assert complete == below.steps == level.steps // level.factor
        assert level.trailing == level.steps % level.factor


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    layers=st.integers(64, 4000),
    factors=st.lists(st.integers(2, 8), min_size=2, max_size=3),
    devices=st.integers(2, 8),
)
def test_a_share_is_rounded_up_by_an_eighth_at_most(layers, factors, devices):
    solver = jm.MGRIT(tuple(factors))
    level, intervals = solver.hierarchy(layers, devices)[0], math.ceil(layers / factors[0])
    own = math.ceil(intervals / devices)
    assert own <= level.share <= own + own // 8
