"""A solver and a schedule of one's own: each is one class in one file, and everything in the library takes it."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks as nets

import jaxmgrit as jm
from jaxmgrit import cost_model
from jaxmgrit.solution import CPoints
from jaxmgrit.solvers.base import Outcome, Solver, at_last_interval, is_finite
from jaxmgrit.solvers.convergence import total_norm
from jaxmgrit.solvers.result import result_code
from jaxmgrit.system.grid import run_interval
from jaxmgrit.system.partition import cut
from jaxmgrit.training.schedules.base import Found
from jaxmgrit.verbs.adjoint import adjoint_network
from jaxmgrit.verbs.state import solve_network


@dataclasses.dataclass(frozen=True)
class Jacobi(Solver):
    """Damped Jacobi over the intervals: all at once from what their neighbours had, a weighted step towards it."""

    layers: int = 4
    iterations: int = 16
    weight: float = 1.0

    @property
    def interval(self):
        return self.layers

    def hierarchy(self, steps, devices=1, *, front=False, ragged=False):
        return cut([steps], [self.layers], devices, front=front, ragged=ragged)

    def run(self, grids, guess, initial):
        (grid,) = grids

        def norm(values):
            return total_norm(grid, jax.vmap(optax.tree.norm)(values))

        def damped(new, old):
            return jax.tree.map(lambda a, b: self.weight * a + (1 - self.weight) * b, new, old)

        def arrive(start, block, mask):
            return run_interval(grid, start, block, mask, None)[0]

        def iteration(ends, _):
            arrived = grid.sweep(arrive, ends, initial, grid.blocks, grid.mask)
            return damped(arrived, ends), norm(jax.tree.map(jnp.subtract, arrived, ends))

        ends, norms = jax.lax.scan(iteration, guess, None, length=self.iterations)
        final = at_last_interval(grid, lambda local: jax.tree.map(lambda x: x[local], ends))
        code = result_code(is_finite(final, grid.backend), False, norms[-1] > 10 * norms[0])
        return Outcome(ends, final, norms, jnp.asarray(self.iterations, jnp.int32), code, norm(ends))


@dataclasses.dataclass(frozen=True)
class ColdState:
    """A schedule: the state is solved from nothing in every iteration, the adjoint goes on where it stopped."""

    def level(self, layers, setting):
        return setting.solver.hierarchy(layers, setting.backend.size)[0]

    def warm_levels(self, layers, setting):
        return (setting.adjoint.hierarchy(layers, setting.backend.size, front=True)[0],)

    def init(self, layers, u0, setting):
        (level,) = self.warm_levels(layers, setting)
        return (jax.tree.map(lambda x: jnp.zeros((level.intervals, *x.shape), x.dtype), u0),)

    def gradient(self, network, u0, head, warm, setting):
        solver, adjoint, backend = setting
        sol = solve_network(network, u0, solver, None, backend)
        top = head(sol.u_final)
        guess = CPoints(top.lam_final, warm[0])
        adj, found = adjoint_network(network, sol, top.lam_final, adjoint, guess, backend, gradients=True)
        norms = sol.residual_norms[-1], adj.residual_norms[-1]
        result = jnp.maximum(sol.result, adj.result)
        return Found(top, found.slots.theta, adj.lam_initial, found.cost, *norms, result, (adj.c_points.ends,))


LAYERS = 61  # 16 intervals of 4, the last one incomplete
THETA, U0, H = nets.rough(LAYERS), nets.state(), 0.05


def test_they_are_short():
    assert len(inspect.getsource(Jacobi).splitlines()) <= 60
    assert len(inspect.getsource(ColdState).splitlines()) <= 60


@pytest.mark.parametrize("devices", nets.slow_but([4], [1, 4]))
def test_as_many_iterations_as_intervals_solve_state_and_adjoint_exactly(devices):
    lam = jnp.cos(U0)
    sol, adj, gradients = nets.solved(nets.tanh_step, THETA, U0, H, Jacobi(), lam_final=lam, backend=nets.mesh(devices))
    exact, pull = jax.vjp(lambda theta, u0: nets.scan(nets.tanh_step, theta, u0, H), THETA, U0)
    d_theta, lam_initial = pull(lam)
    assert nets.distance((sol.u_final, adj.lam_initial, gradients), (exact, lam_initial, d_theta)) < 1e-12
    assert sol.residual_norms[-1] < 1e-12 * sol.residual_norms[0]


def test_damping_slows_it_down_and_the_residuals_tell():
    norms = [jm.solve(nets.tanh_step, THETA, U0, h=H, solver=Jacobi(weight=w)).residual_norms for w in (1.0, 0.5)]
    assert norms[0][-1] < 1e-10 < 1e-4 < norms[1][-1]
    assert norms[1][-1] < norms[1][0]


def test_propagate_is_differentiable_with_it():
    def total(way, theta):
        return jnp.sum(jnp.sin(way(theta)))

    def own(theta):
        return jm.propagate(nets.tanh_step, theta, U0, h=H, solver=Jacobi(), adjoint=Jacobi(8, 8))

    found = jax.value_and_grad(lambda theta: total(own, theta))(THETA)
    expected = jax.value_and_grad(lambda theta: total(lambda t: nets.scan(nets.tanh_step, t, U0, H), theta))(THETA)
    assert nets.distance(found, expected) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("schedule", nets.slow_but([ColdState()], [ColdState(), jm.CyclesThenGradient()]))
def test_training_with_it_is_that_of_plain_jax(schedule):
    problem, params, batch = nets.classification(16)
    trainer = jm.OneShot(problem, optax.sgd(0.1), Jacobi(4, 4), Jacobi(4, 4), schedule, nets.mesh(2))
    state, update = trainer.init(params, batch), jax.jit(trainer.step, donate_argnums=0)
    for _ in range(3):
        state, info = update(state, batch)
    history, values = nets.conventional(problem, params, batch, optax.sgd(0.1), 3)
    assert nets.distance(trainer.params(state), history[-1]) < 1e-12
    np.testing.assert_allclose(info.objective, values[-1], rtol=1e-12)


@pytest.mark.parametrize("devices", [1, 8])
def test_what_they_do_is_counted(devices):
    solver, sizes = Jacobi(4, 5), cost_model.Sizes(24, 80, 8)
    layers = 4 * -(-LAYERS // 4 // devices)  # of a device, padding included
    (state,), (gradient,) = cost_model.iteration_counts(ColdState(), LAYERS, solver, solver, devices, sizes)
    assert (state.phi, state.all_vjp) == (5 * layers, 0)
    assert (gradient.vjp, gradient.grad) == (5 * layers, layers)
    if devices == 1:
        assert state.messages == gradient.messages == 0
    else:
        assert (state.sends, state.sums, state.gathers) == (5, 1, 5 + 1)
