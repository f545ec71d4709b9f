"""Programs do not grow with the number of layers, grow at most linearly with the levels, and are compiled once."""

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import networks as nets

import jaxmgrit as jm


def equations(jaxpr):
    """All equations of a traced program, those of inner programs included."""
    total = 0
    for equation in jaxpr.eqns:
        total += 1
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                total += equations(inner) if hasattr(inner, "eqns") else 0
    return total


def sizes(f, *args):
    """How large a function is: equations when traced, lines when lowered."""
    traced = jax.jit(f).trace(*args)
    return equations(traced.jaxpr.jaxpr), traced.lower().as_text().count("\n")


def of_solves(layers, solver):
    def both(theta, u0):
        sol = jm.solve(nets.tanh_step, theta, u0, h=0.1, solver=solver)
        return jm.adjoint_solve(nets.tanh_step, theta, sol, u0, h=0.1, solver=solver).lam_initial

    return sizes(both, nets.rough(layers), nets.state())


def of_propagate(layers, solver):
    def total(theta, u0):
        return jnp.sum(jm.propagate(nets.tanh_step, theta, u0, h=0.1, solver=solver, adjoint=solver))

    return sizes(jax.grad(total), nets.rough(layers), nets.state())


def of_training(schedule):
    def of(layers, solver):
        problem, params, batch = nets.classification(layers)
        trainer = jm.OneShot(problem, optax.sgd(0.1), solver, solver, schedule)
        return sizes(trainer.step, trainer.init(params, batch), batch)

    return of


PROGRAMS = {
    "solve and adjoint": of_solves,
    "gradient of propagate": of_propagate,
    "cycles, then gradient": of_training(jm.CyclesThenGradient()),
    "predict, then sweep": of_training(jm.PredictThenSweep()),
}


def assert_as_small(deep, shallow):
    """As many equations; in lines almost, since JAX lowers functions that happen to have the same shapes but once."""
    assert deep[0] == shallow[0]
    assert deep[1] <= 1.05 * shallow[1]


@pytest.mark.parametrize("cycle", nets.slow_but(["V"], ["V", "F"]))
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_for_4096_layers_is_as_small_as_one_for_64(program, cycle):
    solver = jm.MGRIT(4, levels=3, cycle=cycle, intervals_per_sweep=1)
    assert_as_small(PROGRAMS[program](4096, solver), PROGRAMS[program](64, solver))


@pytest.mark.parametrize("program", nets.slow_but(["gradient of propagate"], PROGRAMS))
def test_sweeps_in_several_batches_where_the_library_chooses_them_add_a_bounded_number_of_loops(program):
    solver = jm.MGRIT(4, levels=3)
    few, many, most = (PROGRAMS[program](layers, solver) for layers in (64, 4096, 16384))
    assert_as_small(most, many)
    assert many[0] <= 1.25 * few[0]


@pytest.mark.parametrize("program", nets.slow_but(["predict, then sweep"], PROGRAMS))
def test_a_program_for_many_cycles_is_as_small_as_one_for_few(program):
    few, many = (PROGRAMS[program](64, jm.MGRIT(4, levels=3, cycles=cycles)) for cycles in (2, 16))
    assert_as_small(many, few)


@pytest.mark.slow
@pytest.mark.parametrize("cycle", ["V", "F"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_grows_at_most_linearly_with_the_levels(program, cycle):
    counts = [
        PROGRAMS[program](1024, jm.MGRIT(2, levels=levels, cycle=cycle, intervals_per_sweep=1)) for levels in (3, 5, 7)
    ]
    for size in zip(*counts, strict=True):
        growth = [after - before for before, after in zip(size[:-1], size[1:], strict=True)]
        assert max(growth) <= 1.01 * growth[0], f"sizes with 3, 5, 7 levels: {size}"


@pytest.mark.slow
def test_calls_outside_jit_compile_once_per_step_function():
    u0 = nets.state()

    def everything(theta):
        nets.solved(nets.tanh_step, theta, u0, 0.1, jm.MGRIT(3), cost=nets.tanh_cost)
        jax.grad(lambda t: jnp.sum(jm.propagate(nets.tanh_step, t, u0, h=0.1)))(theta)

    everything(nets.rough(23))
    other = nets.rough(23, seed=5)
    with nets.compilations() as programs:
        everything(other)
    assert programs == []
