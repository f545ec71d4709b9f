"""How often the user's step is traced, and how deep inside the library, whatever the solver does with it."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers import networks as nets

import jaxmgrit as jm

LIBRARY = str(Path(jm.__file__).parent)
SOLVER = jm.MGRIT(4)


class Counted:
    """A residual layer that notes at each trace how many frames of the library are above it."""

    def __init__(self):
        self.depths = []

    def __call__(self, theta, u, h):
        frame, depth = sys._getframe(), 0
        while frame is not None:
            depth += frame.f_code.co_filename.startswith(LIBRARY)
            frame = frame.f_back
        self.depths.append(depth)
        return nets.tanh_step(theta, u, h)


def traced(way, h, backend):
    """The depths at which one call's traces happen."""
    step, theta = Counted(), nets.rough(64)

    def total(theta, u0, h):
        return jnp.sum(jm.propagate(step, theta, u0, h=h, solver=SOLVER, adjoint=SOLVER, backend=backend))

    if isinstance(h, float):
        jax.make_jaxpr(way(lambda theta, u0: total(theta, u0, h)))(theta, nets.state())
    else:
        jax.make_jaxpr(way(total))(theta, nets.state(), h)
    return step.depths


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("h", [0.05, jnp.asarray(0.05), jnp.full(64, 0.05)], ids=["number", "scalar", "per layer"])
@pytest.mark.parametrize(("way", "most"), [(lambda f: f, 5), (jax.grad, 10)], ids=["value", "gradient"])
def test_the_step_is_traced_seldom_and_not_deep_inside_the_library(way, most, h, devices):
    depths = traced(way, h, nets.mesh(devices))
    assert 1 <= len(depths) <= most
    assert max(depths) <= 14
