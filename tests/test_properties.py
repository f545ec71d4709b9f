"""Generated cases: MGRIT with enough cycles is sequential propagation, gradient included, whatever the values."""

import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks as nets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxmgrit as jm

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("JAXMGRIT_CASES", "100"))
CONVERGED = {"cycles": 60, "atol": 0.0, "cf_relaxations": (1, 1)}  # to rounding


class Structure(NamedTuple):
    """What a program is compiled for."""

    layers: int
    devices: int
    dtype: Any
    state: str
    solver: jm.MGRIT
    adjoint: jm.MGRIT


def two_levels(layers, m, nu):
    """Exact by the number of its cycles, whatever the coarse steps."""
    return jm.MGRIT(m, levels=2, min_coarse=1, cf_relaxations=(nu, 1), cycles=-(-(layers // m) // (1 + nu)))


STRUCTURES = [
    Structure(1, 1, jnp.float64, "array", jm.MGRIT(2), jm.MGRIT(2)),
    Structure(7, 1, jnp.float32, "tree", two_levels(7, 3, 0), two_levels(7, 3, 1)),
    Structure(13, 2, jnp.float64, "tree", two_levels(13, 3, 1), two_levels(13, 4, 0)),
    Structure(24, 4, jnp.float64, "array", jm.MGRIT(2, **CONVERGED), jm.MGRIT(4, **CONVERGED)),
    Structure(29, 3, jnp.float32, "array", jm.MGRIT(4, cycle="F", **CONVERGED), jm.MGRIT(4, **CONVERGED)),
    Structure(31, 2, jnp.float64, "tree", jm.MGRIT((3, 2), **CONVERGED), jm.MGRIT((3, 2), cycle="F", **CONVERGED)),
    Structure(
        40,
        8,
        jnp.float64,
        "array",
        jm.MGRIT(5, levels=2, coarse_params=jm.average, coarse_step=jm.midpoint, **CONVERGED),
        jm.MGRIT(4, levels=2, **CONVERGED),
    ),
]


def step(theta, u, h):
    """A residual layer on an array or on a tree of two, by a kind that the layer carries as an integer."""
    if not isinstance(u, dict):
        return nets.tanh_step(theta, u, h)
    both = nets.tanh_step(theta, jnp.concatenate([u["a"], u["b"]], axis=1), h)
    sign = jnp.where(theta["kind"] % 2 == 0, 1.0, -1.0).astype(both.dtype)
    return {"a": both[:, :3], "b": both[:, 3:] * (1 - h) + sign * h * u["b"]}


@functools.cache
def programs(structure):
    """Value and gradients by `propagate` and by `lax.scan`, compiled once per structure."""
    backend = nets.mesh(structure.devices)

    def gradient(propagate):
        def loss(w, b, u0, theta, h, weights):
            u = propagate({**theta, "w": w, "b": b}, u0, h)
            return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(u), jax.tree.leaves(weights), strict=True)), u

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))

    def mgrit(theta, u0, h):
        return jm.propagate(step, theta, u0, h=h, solver=structure.solver, adjoint=structure.adjoint, backend=backend)

    return gradient(mgrit), gradient(lambda theta, u0, h: nets.scan(step, theta, u0, h))


def values(structure, seed, scale, total, smooth):
    """Random parameters, state, step sizes and weights of the loss."""
    rng = np.random.default_rng(seed)
    layers = structure.layers
    theta = (nets.smooth if smooth else nets.rough)(layers, seed=seed, scale=scale)
    h = rng.uniform(0.5, 1.5, size=layers) * total / layers
    u0, weights = rng.normal(size=(2, nets.BATCH, nets.WIDTH))
    theta, h, u0, weights = jax.tree.map(lambda x: jnp.asarray(x, structure.dtype), (theta, h, u0, weights))
    if structure.state == "tree":
        u0, weights = ({"a": x[:, :3], "b": x[:, 3:]} for x in (u0, weights))
        theta = {**theta, "kind": jnp.asarray(rng.integers(0, 9, layers))}
    return theta["w"], theta["b"], u0, theta, h, weights


@settings(max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    structure=st.sampled_from(STRUCTURES),
    seed=st.integers(0, 2**31 - 1),
    scale=st.floats(0.0, 0.6),
    total=st.floats(1e-3, 2.0),
    smooth=st.booleans(),
)
def test_enough_cycles_are_sequential_propagation_with_its_gradient(structure, seed, scale, total, smooth):
    ours, theirs = programs(structure)
    arguments = values(structure, seed, scale, total, smooth)
    found, expected = ours(*arguments), theirs(*arguments)
    tolerance = 1e-10 if structure.dtype == jnp.float64 else 1e-4
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == structure.dtype
        size = max(1.0, float(np.max(np.abs(b), initial=0.0)))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size)
