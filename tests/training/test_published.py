"""The published loop: recomputed by hand in NumPy, with exact and with inexact states, and what it does when stuck."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks as nets
from jax.flatten_util import ravel_pytree

import jaxmgrit as jm

LAYERS = 13
EXACT = jm.Sequential()
ONE_CYCLE = jm.MGRIT(2, levels=2, cycles=1)  # programs grow with the levels, which are not the subject
TWO_CYCLES = jm.MGRIT(2, levels=2, cycles=2)
HESSIANS = {"L-BFGS": jm.LBFGS(memory=5), "BFGS": jm.BFGS(), "steepest descent": jm.SteepestDescent()}


@functools.cache
def problem_params_batch(**terms):
    return nets.classification(LAYERS, total=2.0, penalty=nets.penalty, **terms)


def run(trainer, params, batch, iterations):
    """Parameters after every iteration, and the columns of what was reported."""
    state, update = trainer.init(params, batch), jax.jit(trainer.step, donate_argnums=0)
    history, infos = [], []
    for _ in range(iterations):
        state, info = update(state, batch)
        history.append(trainer.params(state))
        infos.append(info)
    assert update._cache_size() == 1
    return history, jax.tree.map(lambda *x: np.array(x), *infos)


# --- by hand ---------------------------------------------------------------------------------------------------------


class Hessian:
    """Directions from all differences so far, in NumPy."""

    def __init__(self, kind, memory):
        self.kind, self.memory, self.s, self.y = kind, memory, [], []

    def direction(self, g):
        if self.kind == "steepest descent" or not self.s:
            return g
        s, y = (self.s[-self.memory :], self.y[-self.memory :]) if self.kind == "L-BFGS" else (self.s, self.y)
        newest = -1 if self.kind == "L-BFGS" else 0
        h = (s[newest] @ y[newest]) / (y[newest] @ y[newest]) * np.eye(len(g))
        for a, b in zip(s, y, strict=True):
            rho = 1 / (a @ b)
            left = np.eye(len(g)) - rho * np.outer(a, b)
            h = left @ h @ left.T + rho * np.outer(a, a)
        return h @ g


def published_by_hand(objective, gradient, x, hessian, iterations, initial_step):
    """Section 4 of the method; `objective` and `gradient` may keep states between calls. Yields a row each."""
    before = None
    for _ in range(iterations):
        value, g = gradient(x)
        if before is not None and (x - before[0]) @ (g - before[1]) > 0:
            hessian.s.append(x - before[0])
            hessian.y.append(g - before[1])
        before = x, g
        d = hessian.direction(g)
        alpha, trials = initial_step, 1
        while objective(x - alpha * d) > value - 1e-4 * alpha * (g @ d):
            alpha, trials = alpha / 2, trials + 1
            assert trials <= 20, "the case is meant to be one in which every line search succeeds"
        x = x - alpha * d
        yield value, np.linalg.norm(g), alpha, trials, x


def assert_columns(infos, history, by_hand, tolerance):
    values, norms, steps, trials, x = zip(*by_hand, strict=True)
    np.testing.assert_array_equal(infos.outcome, jm.Outcome.STEP)
    np.testing.assert_array_equal(infos.trials, trials)
    np.testing.assert_array_equal(infos.step_size, steps)
    np.testing.assert_allclose(infos.objective, values, rtol=tolerance)
    np.testing.assert_allclose(infos.grad_norm, norms, rtol=tolerance)
    np.testing.assert_allclose(ravel_pytree(history[-1])[0], x[-1], rtol=0, atol=tolerance)
    assert max(trials) > 1, "no trial was rejected: the line search was not tested"
    assert values[-1] < values[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", HESSIANS)
def test_with_exact_states_twenty_iterations_are_those_by_hand(name):
    problem, params, batch = problem_params_batch()
    start, unravel = ravel_pytree(params)
    objective = jax.jit(lambda v: nets.exact_objective(problem, unravel(v), batch))
    gradient = jax.jit(jax.value_and_grad(lambda v: nets.exact_objective(problem, unravel(v), batch)))
    by_hand = published_by_hand(
        lambda x: float(objective(x)),
        lambda x: jax.tree.map(np.asarray, gradient(x)),
        np.asarray(start),
        Hessian(name, 5),
        20,
        initial_step=4.0,
    )
    trainer = jm.PublishedLoop(problem, EXACT, EXACT, HESSIANS[name], initial_step=4.0)
    history, infos = run(trainer, params, batch, 20)
    assert_columns(infos, history, list(by_hand), 1e-8)  # quasi-Newton steps amplify rounding


class Inexact:
    """Objective and gradient by one cycle from what the last solve left, through the library's solves."""

    def __init__(self, problem, params, batch):
        self.problem, self.batch, self.unravel = problem, batch, ravel_pytree(params)[1]
        self.guess, self.lam_guess = None, None

        def solve(params, guess):
            u0 = problem.opening(params.opening, batch[0])
            sol = jm.solve(problem.step, params.layers, u0, h=problem.h, solver=ONE_CYCLE, guess=guess)
            return sol, problem.loss(params.closing, sol.u_final, batch[1])[0] + problem.penalty(params)

        def adjoint(params, sol, guess):
            d_closing, lam_final = jax.grad(lambda p, u: problem.loss(p, u, batch[1])[0], argnums=(0, 1))(
                params.closing, sol.u_final
            )
            if guess is None:
                guess = jm.CPoints(lam_final, jnp.zeros((LAYERS // 2 + 1, *lam_final.shape)))
            adj = jm.adjoint_solve(
                problem.step, params.layers, sol, lam_final, h=problem.h, solver=ONE_CYCLE, guess=guess
            )
            d_layers = jm.layer_gradients(problem.step, params.layers, sol, adj, h=problem.h)
            d_opening = jax.vjp(lambda p: problem.opening(p, batch[0]), params.opening)[1](adj.lam_initial)[0]
            actual = jm.Params(d_opening, d_layers, d_closing)
            return adj.c_points, jax.tree.map(jnp.add, actual, jax.grad(problem.penalty)(params))

        self.solve, self.adjoint = jax.jit(solve), jax.jit(adjoint)

    def state(self, x):
        params = self.unravel(jnp.asarray(x))
        sol, value = self.solve(params, self.guess)
        self.guess = sol.c_points
        return params, sol, float(value)

    def objective(self, x):
        return self.state(x)[2]

    def gradient(self, x):
        params, sol, value = self.state(x)
        self.lam_guess, actual = self.adjoint(params, sol, self.lam_guess)
        return value, np.asarray(ravel_pytree(actual)[0])


@pytest.mark.slow
def test_with_one_cycle_every_solve_starts_from_what_the_last_one_left():
    problem, params, batch = problem_params_batch()
    inexact = Inexact(problem, params, batch)
    by_hand = published_by_hand(
        inexact.objective, inexact.gradient, np.asarray(ravel_pytree(params)[0]), Hessian("L-BFGS", 5), 8, 4.0
    )
    trainer = jm.PublishedLoop(problem, ONE_CYCLE, ONE_CYCLE, HESSIANS["L-BFGS"], initial_step=4.0)
    history, infos = run(trainer, params, batch, 8)
    assert_columns(infos, history, list(by_hand), 1e-9)
    assert infos.residual_norm.min() > 1e-6, "one cycle was exact: nothing was tested"
    # What a rejected trial leaves matters: without warm states the line searches would see other objectives.
    exact = run(jm.PublishedLoop(problem, EXACT, EXACT, HESSIANS["L-BFGS"], initial_step=4.0), params, batch, 8)[1]
    assert np.abs(infos.objective - exact.objective).max() > 1e-6


@pytest.mark.slow
def test_two_published_cycles_stay_within_a_few_per_cent_of_exact_training():
    problem, params, batch = nets.classification(32, batch=100, penalty=nets.penalty)
    actual = run(jm.PublishedLoop(problem), params, batch, 40)[1]
    exact = run(jm.PublishedLoop(problem, EXACT, EXACT), params, batch, 40)[1]
    np.testing.assert_allclose(actual.objective, exact.objective, rtol=0.1)
    assert np.median(np.abs(actual.objective / exact.objective - 1)) < 0.03
    assert exact.objective[-1] < 0.7 * exact.objective[0]


# --- outcomes --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_failed_line_search_keeps_the_parameters_and_forgets_the_pairs():
    problem, params, batch = problem_params_batch()
    good = jm.PublishedLoop(problem, EXACT, EXACT, HESSIANS["L-BFGS"])
    state, update = good.init(params, batch), jax.jit(good.step)
    for _ in range(4):
        state, info = update(state, batch)
    before = good.params(state)
    # Steps so long that none of three trials can do.
    state, info = jax.jit(dataclasses.replace(good, initial_step=1e4, ls_max=3).step)(state, batch)
    assert (info.outcome, info.trials, info.step_size) == (jm.Outcome.LINE_SEARCH_FAILED, 3, 0.0)
    assert nets.distance(good.params(state), before) == 0.0
    assert "forgotten" in jm.Outcome(int(info.outcome)).sentence
    # The next direction is the gradient: what steepest descent does from there.
    following, info = update(state, batch)
    steepest = jm.PublishedLoop(problem, EXACT, EXACT, jm.SteepestDescent())
    _, expected = run(steepest, before, batch, 1)
    assert (info.outcome, info.step_size) == (jm.Outcome.STEP, expected.step_size[0])
    gradient = jax.grad(lambda p: nets.exact_objective(problem, p, batch))(before)
    moved = jax.tree.map(lambda x, g: x - info.step_size * g, before, gradient)
    assert nets.distance(good.params(following), moved) < 1e-12


@pytest.mark.slow
def test_below_the_tolerance_of_the_gradient_nothing_moves():
    problem, params, batch = problem_params_batch()
    history, infos = run(jm.PublishedLoop(problem, ONE_CYCLE, ONE_CYCLE, gtol=1e3), params, batch, 2)
    np.testing.assert_array_equal(infos.outcome, jm.Outcome.CONVERGED)
    np.testing.assert_array_equal(infos.trials, 0)
    np.testing.assert_array_equal(infos.step_size, 0.0)
    assert nets.distance(history[-1], params) == 0.0


@pytest.mark.slow
def test_a_trial_that_overflows_is_rejected_and_leaves_nothing_behind():
    problem, params, batch = problem_params_batch()

    def step(theta, u, h):
        return u + h * jnp.exp(u @ theta["w"] + theta["b"][None])

    problem = dataclasses.replace(problem, step=step, penalty=None)
    trainer = jm.PublishedLoop(problem, ONE_CYCLE, ONE_CYCLE, initial_step=2.0**12, ls_max=30)
    history, infos = run(trainer, params, batch, 3)
    long = jax.tree.map(lambda x, y: x + 2.0**12 * (y - x) / infos.step_size[0], params, history[0])
    assert not np.isfinite(nets.exact_objective(problem, long, batch)), "the first trial did not overflow"
    np.testing.assert_array_equal(infos.outcome, jm.Outcome.STEP)
    assert (infos.trials > 5).all()
    assert np.isfinite(infos.objective).all()
    assert infos.objective[-1] < infos.objective[0]


# --- the inner product of L2(0, T) -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("equal", [True, False])
def test_in_l2_the_direction_is_the_gradient_divided_by_the_step_size(equal):
    h = 2.0 / LAYERS if equal else nets.steps_of_unequal_size(LAYERS, 2.0)
    problem, params, batch = nets.classification(LAYERS, h=h)
    trainer = jm.PublishedLoop(problem, EXACT, EXACT, jm.SteepestDescent(), 1e-3, inner_product="l2")
    history, infos = run(trainer, params, batch, 1)
    gradient = jax.grad(lambda p: nets.exact_objective(problem, p, batch))(params)
    sizes = jnp.broadcast_to(jnp.asarray(h), (LAYERS,))
    scaled = {"w": gradient.layers["w"] / sizes[:, None, None], "b": gradient.layers["b"] / sizes[:, None]}
    expected = jax.tree.map(lambda x, g: x - 1e-3 * g, params, gradient._replace(layers=scaled))
    assert nets.distance(history[0], expected) < 1e-12
    squares = nets.inner(gradient.layers, scaled) + nets.inner(gradient[::2], gradient[::2])
    np.testing.assert_allclose(infos.grad_norm[0], np.sqrt(squares), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("hessian", [jm.LBFGS(3), jm.BFGS()], ids=["L-BFGS", "BFGS"])
def test_in_l2_the_first_direction_is_the_gradient(hessian):
    problem, params, batch = nets.classification(16, h=0.1)
    # Concave along the parameters: a pair made of them in two scales would have a curvature that is kept.
    problem = dataclasses.replace(problem, penalty=lambda p: -10.0 * jnp.sum(p.layers["w"] ** 2))
    moved = []
    for choice in (jm.SteepestDescent(), hessian):
        trainer = jm.PublishedLoop(problem, EXACT, EXACT, choice, 1e-3, inner_product="l2")
        moved.append(run(trainer, params, batch, 1)[0][0])
    assert nets.distance(*moved) < 1e-14


@pytest.mark.slow
@pytest.mark.parametrize("kind, expected", [("l2", 1.0), ("euclidean", 0.5)])
def test_in_l2_twice_the_layers_move_alike(kind, expected):
    """The same theta(t) sampled by twice as many layers moves as far, up to the error of forward Euler."""
    moves = []
    for layers in (64, 128):
        problem, params, batch = nets.classification(layers, total=2.0)
        params = params._replace(layers=jax.tree.map(lambda x, n=layers: jnp.repeat(x[:1], n, 0), params.layers))
        trainer = jm.PublishedLoop(problem, EXACT, EXACT, jm.SteepestDescent(), 0.1, inner_product=kind)
        last = run(trainer, params, batch, 3)[0][-1]
        moves.append((last.layers["w"] - params.layers["w"])[:: layers // 64])
    ratio = np.linalg.norm(moves[1]) / np.linalg.norm(moves[0])
    assert ratio == pytest.approx(expected, rel=0.03)
    assert nets.distance(moves[1] / ratio, moves[0]) < 0.05


# --- over devices ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name, inner_product", [("L-BFGS", "l2"), ("BFGS", "euclidean"), ("steepest descent", "l2")])
def test_twelve_iterations_over_devices_are_those_of_one_device(name, inner_product):
    # 27 layers in intervals of 2 over 4 devices: some of the slots are padding.
    problem, params, batch = nets.classification(
        27, penalty=jm.published_penalty(0.1, gamma_tik=1e-3, gamma_ddt=1e-4, gamma_class=1e-3)
    )
    actual = []
    for devices in (1, 4):
        where = {"inner_product": inner_product, "backend": nets.mesh(devices)}
        trainer = jm.PublishedLoop(problem, TWO_CYCLES, TWO_CYCLES, HESSIANS[name], initial_step=4.0, **where)
        history, infos = run(trainer, params, batch, 12)
        actual.append((history[-1], infos))
    assert actual[0][1].trials.max() > 1
    np.testing.assert_array_equal(actual[1][1].trials, actual[0][1].trials)
    np.testing.assert_allclose(actual[1][1].objective, actual[0][1].objective, rtol=1e-10)
    assert nets.distance(actual[1][0], actual[0][0]) < 1e-8


@pytest.mark.slow
def test_every_device_holds_its_share_of_parameters_pairs_and_warm_values():
    problem, params, batch = nets.classification(32)
    trainer = jm.PublishedLoop(problem, ONE_CYCLE, ONE_CYCLE, jm.LBFGS(memory=3), backend=nets.mesh(4))
    state = trainer.init(params, batch)
    for _ in range(2):
        per_slot = [state.params.layers, state.optimizer.x.layers, state.optimizer.gradient.layers]
        for leaf in jax.tree.leaves(per_slot):
            assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {8}
        for leaf in jax.tree.leaves((state.optimizer.hessian.s.layers, state.optimizer.hessian.y.layers)):
            assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {8}
        for leaf in jax.tree.leaves(state.warm):
            assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {4}
        state, _ = jax.jit(trainer.step)(state, batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["L-BFGS", "BFGS"])
def test_a_snapshot_goes_on_from_on_another_number_of_devices(name):
    problem, params, batch = nets.classification(27, penalty=nets.penalty)

    def trainer(devices):
        return jm.PublishedLoop(
            problem, TWO_CYCLES, TWO_CYCLES, HESSIANS[name], initial_step=4.0, backend=nets.mesh(devices)
        )

    state, update = trainer(1).init(params, batch), jax.jit(trainer(1).step)
    for _ in range(4):
        state, _ = update(state, batch)
    snapshot = trainer(1).export(state)
    actual = []
    for devices in (1, 4):
        other = trainer(devices)
        state, update = other.restore(other.init(params, batch), snapshot), jax.jit(other.step)
        for _ in range(4):
            state, info = update(state, batch)
        assert state.iteration == 8
        actual.append((other.params(state), info.objective))
    assert nets.distance(actual[1], actual[0]) < 1e-9


# --- what a training state is ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_donating_the_state_eats_neither_the_callers_arrays_nor_parameters_taken_out():
    problem, params, batch = problem_params_batch()
    trainer = jm.PublishedLoop(problem, ONE_CYCLE, ONE_CYCLE, HESSIANS["L-BFGS"])
    state, update = trainer.init(params, batch), jax.jit(trainer.step, donate_argnums=0)
    leaves = jax.tree.leaves((state, params))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    first = trainer.params(state)
    update(state, batch)
    for kept in (params, batch, first):
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept))
    assert nets.distance(first, params) == 0.0


@pytest.mark.slow
def test_integer_and_key_leaves_are_carried_and_single_precision_stays_single():
    problem, params, batch = jax.tree.map(
        lambda x: x.astype(jnp.float32) if isinstance(x, jax.Array) else x, nets.classification(26)
    )
    fixed = {"kind": jnp.arange(26), "key": jax.random.split(jax.random.key(1), 26)}

    def step(theta, u, h):
        noise = nets.keyed(theta["key"]) * (theta["kind"] % 2).astype(float)
        return nets.tanh_step(theta, u, h) + (0.1 * h * noise).astype(u.dtype)

    problem = dataclasses.replace(problem, step=step)
    params = params._replace(layers={**params.layers, **fixed})
    trainer = jm.PublishedLoop(problem)
    state, info = jax.eval_shape(trainer.step, trainer.init(params, batch), batch)
    floats = [
        x for x in jax.tree.leaves((state, info[0], info[2:6], info.step_size)) if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    assert {leaf.dtype.name for leaf in floats} == {"float32"}
    actual = run(trainer, params, batch, 2)[0][-1]
    assert (actual.layers["kind"] == fixed["kind"]).all()
    assert (actual.layers["key"] == fixed["key"]).all()


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option, value, kind",
    [
        ("initial_step", 0.0, ValueError),
        ("initial_step", float("inf"), ValueError),
        ("ls_max", 0, ValueError),
        ("ls_max", 2.0, TypeError),
        ("c1", 1.0, ValueError),
        ("gtol", -1e-3, ValueError),
        ("inner_product", "energy", ValueError),
        ("hessian", "l-bfgs", TypeError),
        ("solver", 4, TypeError),
        ("backend", "gpu", TypeError),
    ],
)
def test_bad_options_are_refused_by_name(option, value, kind):
    problem = problem_params_batch()[0]
    with pytest.raises(kind, match=f"PublishedLoop: {option}={value!r}"):
        jm.PublishedLoop(problem, **{option: value})


def test_l2_needs_positive_step_sizes():
    problem = dataclasses.replace(problem_params_batch()[0], h=-0.1)
    with pytest.raises(ValueError, match=r"inner_product='l2' needs step sizes > 0"):
        jm.PublishedLoop(problem, inner_product="l2")
