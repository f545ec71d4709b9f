"""Quasi-Newton directions: the two-loop recursion, the dense update, and which pairs they take."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxmgrit as jm
from jaxmgrit.backend.local import LOCAL
from jaxmgrit.training.quasi_newton.hessian import MOST_DENSE, Space

N = 4 + 3 * 2 + 3
SPACE = Space(LOCAL, layers=3)


def params(vector):
    """A vector as parameters of a network."""
    vector = jnp.asarray(vector)
    return jm.Params({"w": vector[:4].reshape(2, 2)}, {"b": vector[4:10].reshape(3, 2)}, vector[10:])


def vector(tree):
    return np.asarray(ravel_pytree(tree)[0])


def pairs(count, seed=0):
    """Differences of parameters and of gradients of a convex quadratic, and a gradient."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(N, N))
    s = rng.normal(size=(count, N))
    return s, s @ (root @ root.T + np.eye(N)), rng.normal(size=N)


def inverse_bfgs(s, y, identity_scale):
    """The inverse update, multiplied out: H <- (I - rho s y') H (I - rho y s') + rho s s'."""
    h = identity_scale * np.eye(N)
    for a, b in zip(s, y, strict=True):
        rho = 1 / (a @ b)
        left = np.eye(N) - rho * np.outer(a, b)
        h = left @ h @ left.T + rho * np.outer(a, a)
    return h


def scale(s, y):
    return (s @ y) / (y @ y)


@functools.cache
def compiled(rule):
    remember = jax.jit(lambda memory, s, y: rule.remember(memory, s, y, SPACE))
    return remember, jax.jit(lambda memory, g: rule.direction(memory, g, SPACE))


def direction(rule, s, y, gradient):
    remember, direct = compiled(rule)
    memory = rule.init(params(gradient), SPACE)
    for a, b in zip(s, y, strict=True):
        memory = remember(memory, params(a), params(b))
    return vector(direct(memory, params(gradient)))


RULES = {"L-BFGS": jm.LBFGS(memory=4), "BFGS": jm.BFGS(), "steepest descent": jm.SteepestDescent()}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_without_pairs_the_direction_is_the_gradient(rule):
    gradient = pairs(0)[2]
    np.testing.assert_array_equal(direction(rule, [], [], gradient), gradient)


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_the_two_loop_recursion_is_the_dense_update_by_the_newest_pairs(count):
    s, y, gradient = pairs(count)
    kept = slice(max(0, count - 4), None)
    h = inverse_bfgs(s[kept], y[kept], scale(s[-1], y[-1]))
    np.testing.assert_allclose(direction(RULES["L-BFGS"], s, y, gradient), h @ gradient, rtol=1e-10)


@pytest.mark.parametrize("count", [1, 7])
def test_dense_bfgs_is_the_update_of_a_scaled_identity(count):
    s, y, gradient = pairs(count)
    h = inverse_bfgs(s, y, scale(s[0], y[0]))
    np.testing.assert_allclose(direction(RULES["BFGS"], s, y, gradient), h @ gradient, rtol=1e-10)


@pytest.mark.parametrize("name", ["L-BFGS", "BFGS"])
@pytest.mark.parametrize("kind", ["negative", "orthogonal", "no step", "not finite"])
def test_pairs_of_bad_curvature_are_dropped_and_the_others_stay(name, kind):
    s, y, gradient = pairs(3)
    bad_s, bad_y = {
        "negative": (s[0], -y[0]),
        "orthogonal": (s[0], y[0] - (y[0] @ s[0]) / (s[0] @ s[0]) * s[0]),
        "no step": (0 * s[0], y[0]),
        "not finite": (s[0], np.inf * y[0]),
    }[kind]
    expected = direction(RULES[name], s[1:], y[1:], gradient)
    actual = direction(RULES[name], [s[1], bad_s, s[2], bad_s], [y[1], bad_y, y[2], bad_y], gradient)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["L-BFGS", "BFGS"])
def test_forgetting_starts_anew(name):
    rule, (s, y, gradient) = RULES[name], pairs(3)
    remember, direct = compiled(rule)
    memory = rule.init(params(gradient), SPACE)
    for a, b in zip(s[:2], y[:2], strict=True):
        memory = remember(memory, params(a), params(b))
    kept = rule.forget(memory, jnp.asarray(False))
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(memory), strict=True))
    memory = rule.forget(memory, jnp.asarray(True))
    np.testing.assert_array_equal(vector(direct(memory, params(gradient))), gradient)
    memory = remember(memory, params(s[2]), params(y[2]))
    expected = direction(rule, s[2:], y[2:], gradient)
    np.testing.assert_allclose(vector(direct(memory, params(gradient))), expected, rtol=1e-12)


def test_too_many_parameters_for_a_dense_matrix_are_refused():
    large = jax.eval_shape(lambda: params(jnp.zeros(N))._replace(closing=jnp.zeros(MOST_DENSE)))
    with pytest.raises(ValueError, match=r"BFGS: 16394 parameters .* jm\.LBFGS"):
        jm.BFGS().init(jax.tree.map(lambda x: jnp.zeros(x.shape), large), SPACE)


@pytest.mark.parametrize("memory", [0, 2.5, True])
def test_a_memory_that_holds_no_pair_is_refused(memory):
    with pytest.raises((ValueError, TypeError), match=f"LBFGS: memory={memory}"):
        jm.LBFGS(memory=memory)
