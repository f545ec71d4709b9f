"""The zoo: networks of many kinds, on which a named solver must not be wrong in silence."""

import jax
import numpy as np
import pytest

from experiments.networks.zoo import MAKERS, make
from experiments.timing.sequential import propagations
from experiments.zoo.compilation import compile_times
from experiments.zoo.gradients import by_cycles, distance, gradient_of

QUICK = ("tanh rough T5", "tanh rough T20", "mlp", "gru", "lstm", "rnn 3", "pendulum", "linear")
LOUD = {"STALLED", "DIVERGED", "NOT_FINITE"}


@pytest.fixture(autouse=True)
def _as_users_run():
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_there_are_networks_of_all_kinds():
    assert len(MAKERS) >= 14
    nets = [make(key) for key in QUICK]
    assert {net.about for net in nets} == {"smooth", "rough", "recurrent", "chaotic"}
    assert all(x.dtype == np.float32 for net in nets for x in jax.tree.leaves((net.theta, net.u0)))
    assert all(jax.tree.leaves(net.theta)[0].shape[0] == net.layers for net in nets)


@pytest.mark.parametrize("key", ["tanh rough T5", pytest.param("lstm", marks=pytest.mark.slow)])
def test_the_ways_to_write_a_scan_agree(key):
    net = make(key)
    ways = propagations(net.step, net.h, net.layers)
    values = {name: jax.jit(gradient_of(f))(net.theta, net.u0) for name, f in ways.items()}
    assert len(values) == 4
    for value in values.values():
        assert distance(value, values["plain"]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in MAKERS if "transformer" not in key])
def test_a_gradient_that_few_cycles_get_wrong_comes_with_a_code_that_says_so(key):
    net = make(key)
    plain = propagations(net.step, net.h, net.layers)["plain"]
    exact = jax.jit(gradient_of(plain))(net.theta, net.u0)[1]
    gradient, state, adjoint = by_cycles(net, 2)
    assert distance(gradient, exact) <= 0.1 or {state.name, adjoint.name} & LOUD


def test_programs_are_compiled_anew_every_time():
    traces = []

    def traced(x):
        traces.append(x)
        return 2 * x

    seconds = compile_times({"doubled": (traced, (1.0,)), "halved": (lambda x: x / 2, (1.0,))}, repeats=3)
    assert len(traces) == 3
    assert seconds.keys() == {"doubled", "halved"} and min(seconds.values()) > 0
