"""One-shot training: conventional training where the cycles are many, and the method's formulas where they are few."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks as nets

import jaxmgrit as jm

AVERAGED_MIDPOINT = dict(coarse_params=jm.average, coarse_step=jm.midpoint)
CONVERGED = jm.MGRIT(4, levels=2, cycles=30, rtol=0.0)  # programs grow with the levels
ADAM = nets.promoting(optax.adam(1e-2))
SCHEDULES = {"cycles, then gradient": jm.CyclesThenGradient(), "predict, then sweep": jm.PredictThenSweep()}
SOLVERS = {
    "cycles, then gradient": jm.MGRIT(4, levels=2, cycles=1),
    "predict, then sweep": jm.MGRIT(4, levels=2, cycles=1, **AVERAGED_MIDPOINT),
}
both_schedules = pytest.mark.parametrize("schedule", nets.slow_but(["predict, then sweep"], SCHEDULES))


def general(layers, **terms):
    """A problem with everything: running cost, penalty, one step size per layer."""
    h = nets.steps_of_unequal_size(layers, 2.0)
    return nets.classification(layers, running_cost=nets.tanh_cost, penalty=nets.penalty, h=h, **terms)


def train(trainer, params, batch, iterations, *, donate=True):
    """Parameters after every iteration and what was reported."""
    state = trainer.init(params, batch)
    update = jax.jit(trainer.step, donate_argnums=0 if donate else ())
    history, infos = [], []
    for _ in range(iterations):
        state, info = update(state, batch)
        history.append(trainer.params(state))
        infos.append(info)
    return history, jax.tree.map(lambda *x: np.array(x), *infos)


# --- conventional training -------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "Adam": ADAM,
    "clipped, with weight decay": optax.chain(
        optax.clip_by_global_norm(0.1), nets.promoting(optax.adamw(1e-2, weight_decay=0.1))
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "layers, optimizer, solver, adjoint",
    [
        # Other intervals for the adjoint, padding in both.
        (37, "Adam", CONVERGED, jm.MGRIT(3, cycles=30, rtol=0.0)),
        (37, "clipped, with weight decay", CONVERGED, jm.Sequential()),
        (37, "Adam", jm.Sequential(), CONVERGED),
    ],
)
def test_many_cycles_are_conventional_training_step_for_step(layers, optimizer, solver, adjoint):
    problem, params, batch = general(layers)
    rule = OPTIMIZERS[optimizer]
    actual, infos = train(jm.OneShot(problem, rule, solver, adjoint), params, batch, 10)
    expected, objectives = nets.conventional(problem, params, batch, rule, 10)
    for iteration, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert nets.distance(a, b) < 1e-10, f"iteration {iteration}"
    np.testing.assert_allclose(infos.objective, objectives, rtol=1e-11)
    gradient = jax.jit(jax.grad(lambda p: nets.exact_objective(problem, p, batch)))(params)
    np.testing.assert_allclose(infos.grad_norm[0], optax.tree.norm(gradient), rtol=1e-10)


@pytest.mark.slow
def test_info_reports_loss_aux_objective_and_gradient_norm_before_the_update():
    problem, params, batch = general(37)
    _, info = train(jm.OneShot(problem, ADAM, CONVERGED, CONVERGED), params, batch, 1)
    loss, accuracy = problem.evaluate(params, batch)
    objective, gradient = jax.jit(jax.value_and_grad(lambda p: nets.exact_objective(problem, p, batch)))(params)
    np.testing.assert_allclose(info.loss[0], loss, rtol=1e-12)
    np.testing.assert_allclose(info.aux[0], accuracy, rtol=1e-12)
    np.testing.assert_allclose(info.objective[0], objective, rtol=1e-12)
    np.testing.assert_allclose(info.grad_norm[0], optax.tree.norm(gradient), rtol=1e-11)
    assert info.result[0] == jm.Result.CONVERGED


@pytest.mark.slow
def test_info_reports_the_last_recorded_residuals_of_state_and_adjoint():
    problem, params, batch = nets.classification(37)
    solver, adjoint = jm.MGRIT(4, cycles=2), jm.MGRIT(3, cycles=3)
    trainer = jm.OneShot(problem, optax.sgd(0.0), solver, adjoint)
    _, info = jax.jit(trainer.step)(trainer.init(params, batch), batch)
    u0 = problem.opening(params.opening, batch[0])
    sol = jm.solve(problem.step, params.layers, u0, h=problem.h, solver=solver)
    lam_final = jax.grad(lambda u: problem.loss(params.closing, u, batch[1])[0])(sol.u_final)
    guess = jm.CPoints(lam_final, jnp.zeros((13, *u0.shape)))
    adj = jm.adjoint_solve(problem.step, params.layers, sol, lam_final, h=problem.h, solver=adjoint, guess=guess)
    np.testing.assert_allclose(info.residual_norm, sol.residual_norms[-1], rtol=1e-12)
    np.testing.assert_allclose(info.adjoint_residual_norm, adj.residual_norms[-1], rtol=1e-12)


@both_schedules
def test_the_fixed_points_are_those_of_the_exact_method(schedule):
    layers = 26
    problem, params, batch = general(layers)
    solver = SOLVERS[schedule]
    trainer = jm.OneShot(problem, nets.recording(), solver, solver, SCHEDULES[schedule])
    state, update = trainer.init(params, batch), jax.jit(trainer.step)
    # Parameters stand still; state and adjoint are exact after as many iterations as intervals each.
    for _ in range(16):
        state, info = update(state, batch)
    exact = jax.jit(jax.grad(lambda p: nets.exact_objective(problem, p, batch)))(params)
    actual = state.optimizer._replace(layers=jax.tree.map(lambda x: x[:layers], state.optimizer.layers))
    assert nets.distance(actual, exact) < 1e-12
    assert info.residual_norm < 1e-12
    assert info.adjoint_residual_norm < 1e-12


@pytest.mark.slow
def test_few_cycles_end_within_a_few_per_cent_of_the_loss_of_conventional_training():
    # T = 5, K = 16 intervals: more than 2 + 2 cycles make exact.
    problem, params, batch = nets.classification(64, batch=100)
    losses = {}
    for name, cycles, schedule in [
        ("sequential", None, "cycles, then gradient"),
        ("2 + 2 cycles", 2, "cycles, then gradient"),
        ("predict, then sweep", 1, "predict, then sweep"),
    ]:
        solver = jm.Sequential() if cycles is None else dataclasses.replace(SOLVERS[schedule], cycles=cycles)
        trainer = jm.OneShot(problem, ADAM, solver, solver, SCHEDULES[schedule])
        losses[name] = float(problem.evaluate(train(trainer, params, batch, 200)[0][-1], batch)[0])
    assert losses["sequential"] < 0.5 * float(problem.evaluate(params, batch)[0])
    assert losses["2 + 2 cycles"] == pytest.approx(losses["sequential"], rel=0.01), losses
    assert losses["predict, then sweep"] == pytest.approx(losses["sequential"], rel=0.01), losses


# --- predict, then sweep, by hand ------------------------------------------------------------------------------------


def predict_then_sweep_by_hand(problem, params, batch, m, combine, coarse, rate, iterations):
    """Section 4 of the method, one interval at a time: the parameters after each iteration of steepest descent."""
    layers = len(params.layers["b"])
    h = jnp.broadcast_to(jnp.asarray(problem.h), (layers,))
    intervals = [slice(n, min(n + m, layers)) for n in range(0, layers, m)]

    def fine(block, u):
        """Psi over one interval, and the running cost along it."""
        theta, sizes = block
        return nets.scan(problem.step, theta, u, sizes), nets.scan_cost(
            problem.step, problem.running_cost, theta, u, sizes
        )

    def rough(block, u):
        """G over one interval."""
        theta, sizes = block
        return coarse(problem.step, combine(theta), u, jnp.sum(sizes), m)

    @jax.jit
    def swept(block, u, lam):
        (arrived, cost), pull = jax.vjp(fine, block, u)
        (d_theta, _), lam = pull((lam, jnp.ones_like(cost)))
        return arrived, lam, d_theta

    predict = jax.jit(rough)
    predict_back = jax.jit(lambda block, u, lam: jax.vjp(partial(rough, block), u)[1](lam)[0])

    tau, sigma = [0.0] * len(intervals), [0.0] * len(intervals)
    for _ in range(iterations):
        blocks = [(jax.tree.map(lambda x, own=own: x[own], params.layers), h[own]) for own in intervals]
        u0, pull_opening = jax.vjp(lambda p: problem.opening(p, batch[0]), params.opening)
        points = [u0]
        for block, correction in zip(blocks, tau, strict=True):
            points.append(predict(block, points[-1]) + correction)
        d_closing, lam_final = jax.grad(lambda p, u: problem.loss(p, u, batch[1])[0], argnums=(0, 1))(
            params.closing, points[-1]
        )
        lams = [lam_final]
        for j in reversed(range(len(blocks))):
            lams.insert(0, predict_back(blocks[j], points[j], lams[0]) + sigma[j])

        d_layers = []
        for j, block in enumerate(blocks):
            arrived, lam, d_theta = swept(block, points[j], lams[j + 1])
            tau[j] = tau[j] + arrived - points[j + 1]
            sigma[j] = sigma[j] + lam - lams[j]
            d_layers.append(d_theta)
            if j == 0:
                d_opening = pull_opening(lam)[0]
        d_layers = jax.tree.map(lambda *x: jnp.concatenate(x), *d_layers)
        gradients = jax.tree.map(jnp.add, jm.Params(d_opening, d_layers, d_closing), jax.grad(problem.penalty)(params))
        params = jax.tree.map(lambda p, g: p - rate * g, params, gradients)
        yield params


@pytest.mark.slow
@pytest.mark.parametrize(
    "layers, options",
    [(18, dict(coarse_params=jm.injection, coarse_step=jm.same_step)), (20, AVERAGED_MIDPOINT)],
    ids=["injection, N = 18", "averaged midpoint, N = 20"],
)
def test_predict_then_sweep_follows_its_formulas(layers, options):
    problem, params, batch = general(layers)
    solver = jm.MGRIT(5, levels=2, cycles=1, **options)
    trainer = jm.OneShot(problem, optax.sgd(0.1), solver, solver, jm.PredictThenSweep())
    actual, _ = train(trainer, params, batch, 3)
    by_hand = predict_then_sweep_by_hand(
        problem, params, batch, 5, options["coarse_params"], options["coarse_step"], 0.1, 3
    )
    for a, b in zip(actual, by_hand, strict=True):
        assert nets.distance(a, b) < 1e-12


def test_the_loss_of_predict_then_sweep_is_the_one_at_the_predicted_state():
    problem, params, batch = nets.classification(20)
    solver = jm.MGRIT(5, levels=2, cycles=1)
    _, info = train(jm.OneShot(problem, optax.sgd(0.1), solver, solver, jm.PredictThenSweep()), params, batch, 1)
    # At first there is nothing to correct by: the coarse network with the layers 0, 5, 10, 15.
    coarse = jax.tree.map(lambda x: x[::5], params.layers)
    u = nets.scan(problem.step, coarse, problem.opening(params.opening, batch[0]), 5 * problem.h)
    np.testing.assert_allclose(info.loss[0], problem.loss(params.closing, u, batch[1])[0], rtol=1e-13)


@pytest.mark.slow
def test_three_levels_with_many_coarse_cycles_predict_as_two_levels_do():
    problem, params, batch = nets.classification(35)

    def trained(**options):
        solver = jm.MGRIT(2, **options, **AVERAGED_MIDPOINT)
        trainer = jm.OneShot(problem, optax.sgd(0.1), solver, solver, jm.PredictThenSweep())
        return train(trainer, params, batch, 4)[0][-1]

    assert nets.distance(trained(levels=3, cycles=5), trained(levels=2)) < 1e-12


# --- what a training state is ----------------------------------------------------------------------------------------


@both_schedules
def test_donating_the_state_eats_neither_the_callers_arrays_nor_parameters_taken_out(schedule):
    problem, params, batch = nets.classification(26)
    trainer = jm.OneShot(problem, ADAM, SOLVERS[schedule], SOLVERS[schedule], SCHEDULES[schedule])
    state, update = trainer.init(params, batch), jax.jit(trainer.step, donate_argnums=0)
    first = trainer.params(state)
    following, _ = update(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.warm))), "nothing was donated"
    taken = trainer.params(following)
    update(following, batch)
    for kept in (params, batch, first, taken):
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept))
    assert nets.distance(first, params) == 0.0


@both_schedules
def test_no_two_leaves_of_a_state_share_a_buffer(schedule):
    problem, params, batch = nets.classification(24)
    shared = params._replace(closing={"w": params.closing["w"], "b": jnp.zeros(3)}, opening=dict(params.opening))
    trainer = jm.OneShot(problem, ADAM, SOLVERS[schedule], SOLVERS[schedule], SCHEDULES[schedule])
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((shared, trainer.init(shared, batch)))]
    assert len(set(pointers)) == len(pointers)


@both_schedules
def test_nothing_is_traced_again_after_the_first_step(schedule):
    problem, params, batch = nets.classification(64)
    traces = []

    def step(theta, u, h):
        traces.append(None)
        return nets.tanh_step(theta, u, h)

    problem = dataclasses.replace(problem, step=step)
    solver = SOLVERS[schedule]
    trainer = jm.OneShot(problem, ADAM, solver, solver, SCHEDULES[schedule], nets.mesh(4))
    state, update = trainer.init(params, batch), jax.jit(trainer.step, donate_argnums=0)
    state, _ = update(state, batch)
    after_one = len(traces)
    for _ in range(2):
        state, _ = update(state, batch)
    assert len(traces) == after_one
    assert update._cache_size() == 1
    assert state.iteration == 3


@pytest.mark.slow
def test_a_whole_training_may_be_one_scan():
    problem, params, batch = nets.classification(26)
    trainer = jm.OneShot(problem, ADAM, SOLVERS["cycles, then gradient"], SOLVERS["cycles, then gradient"])
    state, infos = jax.jit(lambda state: jax.lax.scan(lambda s, _: trainer.step(s, batch), state, None, length=4))(
        trainer.init(params, batch)
    )
    expected, reported = train(trainer, params, batch, 4)
    assert nets.distance(trainer.params(state), expected[-1]) < 1e-12
    np.testing.assert_allclose(infos.loss, reported.loss, rtol=1e-12)


@pytest.mark.slow
def test_integer_and_key_leaves_are_neither_trained_nor_shown_to_the_optimiser():
    problem, params, batch = nets.classification(26)
    fixed = {"kind": jnp.arange(26), "key": jax.random.split(jax.random.key(1), 26)}

    def step(theta, u, h):
        noise = nets.keyed(theta["key"]) * (theta["kind"] % 2).astype(u.dtype)
        return nets.tanh_step(theta, u, h) + 0.1 * h * noise

    def opening(theta, x):
        return nets.opening(theta["dense"], x) * theta["sign"].astype(x.dtype)

    problem = dataclasses.replace(problem, step=step, opening=opening)
    params = params._replace(
        layers={**params.layers, **fixed}, opening={"dense": params.opening, "sign": jnp.asarray(-1)}
    )
    actual, infos = train(jm.OneShot(problem, ADAM, CONVERGED, CONVERGED), params, batch, 3)
    assert (actual[-1].layers["kind"] == fixed["kind"]).all()
    assert (jax.random.key_data(actual[-1].layers["key"]) == jax.random.key_data(fixed["key"])).all()
    assert actual[-1].opening["sign"] == -1

    def trainable(p):
        return jm.Params(p.opening["dense"], {"w": p.layers["w"], "b": p.layers["b"]}, p.closing)

    plain = dataclasses.replace(
        problem,
        opening=lambda p, x: -nets.opening(p, x),
        step=lambda t, u, h: step({**t[0], **t[1]}, u, h),
    )

    def objective(p):
        return nets.exact_objective(plain, p._replace(layers=(p.layers, fixed)), batch)

    gradient = jax.jit(jax.grad(objective))
    now, state = trainable(params), ADAM.init(trainable(params))
    for _ in range(3):
        updates, state = ADAM.update(gradient(now), state, now)
        now = optax.apply_updates(now, updates)
    assert nets.distance(trainable(actual[-1]), now) < 1e-10


@pytest.mark.slow
def test_single_precision_training_stays_single_precision():
    single = jax.tree.map(lambda x: x.astype(jnp.float32), nets.classification(26)[1:])
    problem = general(26)[0]
    solver = SOLVERS["predict, then sweep"]
    for schedule in SCHEDULES.values():
        trainer = jm.OneShot(problem, optax.sgd(0.1), solver, solver, schedule)
        state, info = jax.eval_shape(trainer.step, trainer.init(*single), single[1])
        assert {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.warm, info[:6]))} == {"float32"}


@pytest.mark.slow
def test_changing_batches_keep_their_own_warm_values():
    problem, params, (x, y) = nets.classification(24)
    batches = [(x[:6], y[:6]), (x[6:], y[6:])]
    solver = jm.MGRIT(4, cycles=1)
    trainer = jm.OneShot(problem, nets.recording(), solver, solver)
    state = trainer.init(params, batches[0])
    warm = [state.warm, trainer.init(params, batches[1]).warm]
    update = jax.jit(trainer.step)
    for k in range(32):
        state, _ = update(dataclasses.replace(state, warm=warm[k % 2]), batches[k % 2])
        warm[k % 2] = state.warm
    exact = jax.jit(jax.grad(lambda p: nets.exact_objective(problem, p, batches[1])))(params)
    assert nets.distance(state.optimizer, exact) < 1e-12


# --- anticipation ----------------------------------------------------------------------------------------------------


def test_anticipate_hands_on_the_gradient_and_alpha_times_its_change():
    rule = jm.anticipate(0.3)
    g = [{"w": jnp.asarray([1.0, 2.0])}, {"w": jnp.asarray([4.0, 0.0])}, {"w": jnp.asarray([5.0, 5.0])}]
    state, actual = rule.init(g[0]), []
    for gradient in g:
        ahead, state = rule.update(gradient, state)
        actual.append(ahead["w"])
    np.testing.assert_allclose(actual, [[1.0, 2.0], [4.9, -0.6], [5.3, 6.5]], rtol=1e-15)


def test_anticipate_by_zero_changes_nothing():
    gradient = {"w": jnp.asarray([1.0, 2.0])}
    rule = jm.anticipate(0.0)
    _, state = rule.update(gradient, rule.init(gradient))
    ahead, _ = rule.update(jax.tree.map(jnp.square, gradient), state)
    np.testing.assert_array_equal(ahead["w"], [1.0, 4.0])


@pytest.mark.slow
def test_the_gradient_in_l2_is_the_layers_divided_by_the_step_size():
    gradient = jm.Params(jnp.ones(2), {"w": jnp.asarray([1.0, 2.0])}, jnp.ones(1))
    rule = jm.l2_gradient(0.25)
    actual, _ = rule.update(gradient, rule.init(gradient))
    assert nets.distance(actual, gradient._replace(layers={"w": jnp.asarray([4.0, 8.0])})) == 0.0
    with pytest.raises(ValueError, match=r"l2_gradient: h=-1\.0"):
        jm.l2_gradient(-1.0)


@pytest.mark.slow
def test_hidden_layers_without_anything_to_train_train_opening_and_closing():
    w = 0.1 * jnp.ones((4, 4))
    problem = jm.Problem(
        opening=lambda p, x: x @ p,
        step=lambda n, u, h: u + h * jnp.tanh(u @ w),
        loss=lambda p, u, y: (jnp.mean((u @ p - y) ** 2), None),
        h=1 / 8,
    )
    params = jm.Params(jnp.ones((2, 4)), {"n": jnp.arange(8)}, jnp.ones((4, 1)))
    batch = (jnp.ones((3, 2)), jnp.zeros((3, 1)))
    sequential = jm.Sequential()
    trainer = jm.OneShot(problem, optax.sgd(0.1), sequential, sequential)
    state, info = trainer.step(trainer.init(params, batch), batch)
    after, (loss, _) = trainer.params(state), problem.evaluate(params, batch)
    np.testing.assert_allclose(info.loss, loss)
    np.testing.assert_array_equal(after.layers["n"], params.layers["n"])
    assert (after.opening != params.opening).any() and (after.closing != params.closing).any()


def test_a_loss_without_aux_is_named_by_evaluate_too():
    problem = jm.Problem(lambda p, x: x, lambda t, u, h: u + h * t, lambda p, u, y: jnp.mean(u), h=0.1)
    with pytest.raises(TypeError, match=r"loss must return \(scalar, aux\)"):
        problem.evaluate(jm.Params({}, jnp.ones((4, 1)), {}), (jnp.ones((2, 1)), None))
