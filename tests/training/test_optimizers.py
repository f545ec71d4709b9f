"""Every optax transformation gives what it gives on the plain parameters, on every backend and from one to another."""

import warnings

import jax
import pytest
from helpers import networks as nets
from helpers import optimizers as opts

import jaxmgrit as jm

STEPS, TOLERANCE = 5, 1e-6
LOCAL = jm.Local()
QUICK = ["sgd"]


@pytest.fixture(autouse=True)
def _as_optax_wants_it():
    """Optax promotes dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", nets.slow_but(QUICK, list(opts.OPTIMIZERS)))
def test_updates_are_those_of_optax_alone(name):
    optimizer, two = opts.OPTIMIZERS[name](), nets.mesh(2)
    expected = opts.plainly(optimizer, STEPS)
    assert opts.distance(expected, opts.network()[0]) > 1e-4, "it does not train at all"
    legs = {
        "one device": [(LOCAL, STEPS)],
        "two devices": [(two, STEPS)],
        "from one to two to one": [(LOCAL, 2), (two, 2), (LOCAL, 1)],
    }
    trainers = {}
    for where, leg in legs.items():
        assert opts.distance(opts.by_one_shot(optimizer, *leg, trainers=trainers), expected) < TOLERANCE, where
