"""The plan: hierarchies whose gradient is no good are not named, and a function of the user's own is checked."""

import textwrap

import jax
import jax.numpy as jnp
import pytest

import jaxmgrit as jm
from experiments import plan
from experiments.config.reader import read
from experiments.timing import calibrated
from experiments.training import build
from jaxmgrit.analysis.cost_model import Sizes

MODULE = """
import jax.numpy as jnp


def step(theta, u, h):
    return u + h * jnp.tanh(u @ theta)


def network():
    return step, 0.1 * jnp.ones((4, 3, 3)), jnp.ones((2, 3)), 0.25


def three():
    return step, 0.1 * jnp.ones((4, 3, 3)), jnp.ones((2, 3))


def unfitting():
    return step, jnp.ones((4, 5, 5)), jnp.ones((2, 3)), 0.25


def failing():
    raise RuntimeError("no data here")


number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_network_of_a_test.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "own_broken_module_of_a_test.py").write_text("import no_such_module_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_function_of_ones_own_is_advised_on(module, capsys):
    with jax.numpy_rank_promotion("allow"):
        assert plan.main(["own_network_of_a_test:network", "--devices", "1", "--seconds", "30"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("ms per gradient") and "Sequential is the best choice on one device" in printed


SIGNATURE = "a function plan() -> (step, theta, u0, h)"


@pytest.mark.parametrize(
    ("word", "messages"),
    [
        ("own_network_of_a_test:three", ["three() returned a tuple of 3", SIGNATURE]),
        ("own_network_of_a_test:failing", ["RuntimeError: no data here", SIGNATURE]),
        ("own_network_of_a_test:number", ["number", "given 3", SIGNATURE, SIGNATURE]),
        ("own_network_of_a_test:nothing", ["has no 'nothing'", SIGNATURE]),
        ("own_network_of_a_test:unfitting", ["step cannot be evaluated", SIGNATURE]),
        ("own_broken_module_of_a_test:network", ["no module 'no_such_module_at_all'", SIGNATURE]),
        ("no_such_module_of_a_test:network", ["there is no module", SIGNATURE]),
        ("own_network_of_a_test:network --network.layers 3", ["--network.layers 3: unexpected", "is a function"]),
    ],
)
def test_what_is_no_such_function_is_refused_with_the_signature(module, word, messages, capsys):
    assert plan.main(word.split()) == 2
    error = capsys.readouterr().err
    assert all(message in error for message in messages), error
    assert "Traceback" not in error


def test_the_fastest_hierarchy_is_named_only_if_its_gradient_will_do():
    config = read(["configs/level_sets.yaml", "--network.layers", "64"], "experiments.plan")
    state = jax.ShapeDtypeStruct((50, 8), jnp.float32)
    known = calibrated.Calibration(
        {1: (1e-6, 2e-6, 4e-6)}, (3e-6, 5e-6), 1e-2, (1e-5, 1e-10), Sizes(1600, 288, 4), state
    )
    asked = []

    def short(solver):
        asked.append(solver)
        return solver.factor(0) <= 4

    seconds, name = plan.best_within(known, config, 1, short)
    by_time, fastest = plan.best_within(known, config, 1, lambda solver: True)
    assert by_time < seconds and fastest != name and name.startswith("m = 4")
    times = [known.seconds(config, solver, 1) for solver in asked]
    assert times == sorted(times) and times[-1] == seconds  # slower ones are not looked at
    assert plan.best_within(known, config, 1, lambda solver: False) == (float("inf"), "-")


def test_layers_dealt_out_are_modelled_for_picard_sweeps_alone():
    words = ["configs/level_sets_rough.yaml", "--network.layers", "1024", "--solver.coarsening-factor", "32"]
    rough = read(words, "experiments.plan")
    smooth = read(["configs/level_sets.yaml"], "experiments.plan")
    state = jax.ShapeDtypeStruct((300, 8), jnp.float32)
    ones = dict.fromkeys((1, 32), (1.0, 2.0, 3.0))  # so many layers at once take as long as one
    at_once = {b: tuple(x / b for x in times) for b, times in ones.items()}
    known = calibrated.Calibration(at_once, (0.0, 0.0), 4096.0, (0.0, 0.0), Sizes(), state)
    seconds = known.cyclic(rough, build.solver(rough.solver), 1), known.cyclic(rough, build.solver(rough.solver), 32)
    # Two sweeps of 32 intervals ahead and, with a pullback as dear as two layers, back; 63 stages of a layer and 3.
    assert seconds[1] == 32 * 2 * (1 + 1 + 2) + 63 * (1 + 3)
    assert seconds[0] == 32 * 2 * (1 + 1 + 2) + 32 * 32 * (1 + 3)
    with pytest.raises(ValueError, match="Picard"):
        known.cyclic(smooth, build.solver(smooth.solver), 1)


@pytest.mark.slow
def test_a_gradient_over_shorter_intervals_is_nearer_to_the_exact_one():
    small = ["--network.layers", "64", "--problem.train-per-class", "10"]
    config = read(["configs/level_sets.yaml", *small, "--dtype", "float64"], "experiments.plan")
    errors = [plan.gradient_error({}, config, jm.MGRIT(m, levels=2)) for m in (2, 32)]
    assert 0 < errors[0] < errors[1]
    assert plan.gradient_error({}, config, jm.Sequential()) in (float("inf"), pytest.approx(0, abs=1e-9))
