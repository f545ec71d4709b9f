"""Shared parameters, a context and keys: one-shot training with many cycles is conventional training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks as nets

import jaxmgrit as jm

LAYERS, WIDTH, SAMPLES, H, STEPS = 10, 3, 4, 0.2, 3
MANY = {"cycles": 6}
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def _as_optax_wants_it():
    """Adam promotes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape))


def step(theta, u, h, common):
    """A residual layer with a shared weight, under a mask of the context and dropout."""
    d = jnp.tanh(u @ common.shared["w"] + (theta["b"][None] if theta else 0.0))
    if common.context is not None:
        d = d * common.context["mask"] * common.context["rate"]
    if common.key is not None:
        d = d * jax.random.bernoulli(common.key, 0.7, d.shape) / 0.7
    return u + h * d


def cost(theta, u, h, common):
    return 0.1 * h * jnp.mean(u**2) * jnp.sum(common.shared["w"] ** 2)


def problem(**options):
    return jm.Problem(
        lambda theta, x: x @ theta,
        step,
        lambda theta, u, y: (jnp.mean((u @ theta - y) ** 2), None),
        h=H,
        running_cost=cost,
        penalty=jm.published_penalty(H, gamma_tik=0.01, gamma_ddt=0.001),
        **options,
    )


PARAMS = jm.Params(normal(2, WIDTH), {"b": 0.1 * normal(LAYERS, WIDTH)}, normal(WIDTH, 1), {"w": 0.4 * normal(3, 3)})
TIED = PARAMS._replace(layers={})
BATCH = normal(SAMPLES, 2), normal(SAMPLES, 1)
CONTEXT = {"mask": (normal(SAMPLES, WIDTH) > 0) * 1.0, "rate": jnp.asarray(0.9)}
KEYS = list(jax.random.split(jax.random.key(3), STEPS))
NONE = [None] * STEPS
LOCAL = jm.Local()


def objective(params, context, key, shift=0, batch=BATCH):
    """The objective, one layer after another; layer n has the key of layer n + shift."""
    u, total = batch[0] @ params.opening, 0.0
    for n in range(LAYERS):
        theta = jax.tree.map(lambda x, n=n: x[n], params.layers)
        own = None if key is None else jax.random.fold_in(key, n + shift)
        common = jm.Common(params.shared, context, own)
        total, u = total + cost(theta, u, H, common), step(theta, u, H, common)
    return problem().loss(params.closing, u, batch[1])[0] + total + problem().penalty(params)


def objective_in_parts(params, context, key):
    """Two halves of the batch, each with its half of the context and a key of its own."""
    total = 0.0
    for part in range(2):
        x, y, mask = (a[2 * part : 2 * part + 2] for a in (*BATCH, context["mask"]))
        own = objective(params, {**context, "mask": mask}, jax.random.fold_in(key, part), batch=(x, y))
        total = total + own / 2
    return total


EXACT, IN_PARTS = (jax.jit(jax.value_and_grad(f)) for f in (objective, objective_in_parts))


def conventionally(params, context, keys, exact=EXACT):
    optimizer = optax.adam(1e-2)
    state = optimizer.init(params)
    for key in keys:
        updates, state = optimizer.update(exact(params, context, key)[1], state, params)
        params = optax.apply_updates(params, updates)
    return params


def one_shot(solver, backend, start="cold", **options):
    return jm.OneShot(problem(**options), optax.adam(1e-2), solver, solver, backend=backend, start=start)


def trained(trainer, params, context, keys):
    update, state = jax.jit(trainer.step, donate_argnums=0), trainer.init(params, BATCH)
    for key in keys:
        state, info = update(state, BATCH, context=context, key=key)
        assert info.result not in (jm.Result.NOT_FINITE, jm.Result.OTHER_BATCH)
    assert update._cache_size() == 1, "traced more than once"
    return trainer, state


@pytest.fixture(scope="module")
def everything():
    """The parameters after conventional training with all three."""
    return conventionally(PARAMS, CONTEXT, KEYS)


PICARD = {"levels": 2, "coarse_params": jm.all_layers, "coarse_step": jm.picard(1)}
LAST = {"coarse_params": lambda theta: jax.tree.map(lambda x: x[-1], theta)}
SOLVERS = {
    "injection, one device": (jm.MGRIT(2, **MANY), None),
    "all layers, two devices": (jm.MGRIT(4, **MANY, **PICARD), 2),
    "average and midpoint, two devices": (
        jm.MGRIT(2, **MANY, coarse_params=jm.average, coarse_step=jm.midpoint),
        2,
    ),
    "coarse parameters of one's own": (jm.MGRIT(2, **MANY, **LAST), None),
    "Newton": (jm.Newton(2, iterations=6), None),
    "sequential": (jm.Sequential(), 2),
}


@pytest.mark.parametrize("name", nets.slow_but(["injection, one device", "all layers, two devices"], list(SOLVERS)))
def test_many_cycles_are_conventional_training(name, everything):
    """The masks of state, adjoint and gradient agree with each other, and with those documented."""
    solver, devices = SOLVERS[name]
    trainer, state = trained(one_shot(solver, nets.mesh(devices) if devices else jm.Local()), PARAMS, CONTEXT, KEYS)
    assert nets.distance(trainer.params(state), everything) < 1e-10


def test_other_masks_are_other_gradients():
    """What the tests above would see if a layer's key were another's in a cycle, the adjoint or the gradient."""
    own, other = (jax.grad(objective)(PARAMS, CONTEXT, KEYS[0], shift) for shift in (0, 1))
    assert nets.distance(own, other) > 1e-2


@pytest.fixture(scope="module")
def in_parts():
    """A trainer over two parts of the batch and two devices for the layers, trained with context and keys."""
    devices = jax.make_mesh((2, 2), ("data", "layers"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    trainer = one_shot(jm.MGRIT(2, **MANY), jm.Mesh(devices, data_axis="data"), layers=LAYERS)
    return trained(trainer, TIED, CONTEXT, KEYS)


def test_parts_of_the_batch_have_their_part_of_the_context_and_keys_of_their_own(in_parts):
    """As documented, in state, adjoint and gradient: the key is folded with the part's number, then the layer's."""
    trainer, state = in_parts
    expected = conventionally(TIED, CONTEXT, KEYS, IN_PARTS)
    assert nets.distance(trainer.params(state), expected) < 1e-10
    # Masks do depend on the number of parts: a row's is another one where the batch is whole.
    assert nets.distance(conventionally(TIED, CONTEXT, KEYS), expected) > 1e-4
    # On to one device by a snapshot; evaluation too needs the context.
    alone = one_shot(jm.MGRIT(2, **MANY), LOCAL, layers=LAYERS)
    restored = alone.restore(alone.init(TIED, BATCH), trainer.export(state))
    assert nets.distance(alone.params(restored), expected) < 1e-10
    loss, _ = alone.evaluate(restored, BATCH, context=CONTEXT)
    np.testing.assert_allclose(alone.problem.evaluate(expected, BATCH, context=CONTEXT)[0], loss, rtol=1e-9)
    np.testing.assert_allclose(trainer.evaluate(state, BATCH, context=CONTEXT)[0], loss, rtol=1e-9)


def test_no_evaluation_of_a_layer_has_a_key_of_its_own():
    """Relaxation, coarse levels, adjoint and gradient: every key that a step ever sees is one of those documented."""
    seen = set()

    def observed(theta, u, h, common):
        jax.debug.callback(
            lambda key: seen.update(map(tuple, np.reshape(key, (-1, 2)))), jax.random.key_data(common.key)
        )
        return step(theta, u, h, common)

    devices = jax.make_mesh((2, 2), ("data", "layers"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    solver = jm.MGRIT(2, cf_relaxations=(1, 1), cycles=1)
    watched = dataclasses.replace(problem(layers=LAYERS), step=observed, running_cost=None)
    trainer = jm.OneShot(
        watched, optax.sgd(0.1), solver, solver, backend=jm.Mesh(devices, data_axis="data"), start="cold"
    )
    jax.block_until_ready(trainer.step(trainer.init(TIED, BATCH), BATCH, context=CONTEXT, key=KEYS[0]))
    jax.effects_barrier()
    fold = jax.random.fold_in
    keys = [jax.random.key_data(fold(fold(KEYS[0], part), n)) for part in range(2) for n in range(LAYERS)]
    assert seen == {tuple(np.asarray(key)) for key in keys} and len(seen) == 2 * LAYERS


def published(solver, hessian, backend=LOCAL, start="cold"):
    return jm.PublishedLoop(
        problem(layers=LAYERS), solver, solver, hessian, initial_step=2.0, backend=backend, start=start
    )


def backtracked(params, context, keys):
    """Steepest descent with Armijo backtracking: parameters, and the trials of every line search."""
    trials = []
    for key in keys:
        value, gradient = EXACT(params, context, key)
        slope, step_size, count = nets.inner(gradient, gradient), 2.0, 0
        enough = False
        while not enough:
            moved = jax.tree.map(lambda x, g, a=step_size: x - a * g, params, gradient)
            enough = EXACT(moved, context, key)[0] <= value - 1e-4 * step_size * slope
            step_size, count = step_size / 2, count + 1
        params = moved
        trials.append(count)
    return params, trials


@pytest.mark.parametrize("devices", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_the_published_loop_trains_with_context_and_keys(devices):
    """Gradient and trials of an iteration have the masks of its key, those documented."""
    trainer = published(jm.MGRIT(2, **MANY), jm.SteepestDescent(), nets.mesh(devices) if devices else jm.Local())
    state, update, trials = trainer.init(TIED, BATCH), jax.jit(trainer.step, donate_argnums=0), []
    for key in KEYS:
        state, info = update(state, BATCH, context=CONTEXT, key=key)
        trials.append(int(info.trials))
    expected, by_hand = backtracked(TIED, CONTEXT, KEYS)
    assert trials == by_hand and max(trials) > 1
    assert nets.distance(trainer.params(state), expected) < 1e-9
    assert update._cache_size() == 1 and not jax.tree.leaves(state.warm)
    loss, _ = trainer.evaluate(state, BATCH, context=CONTEXT)
    np.testing.assert_allclose(trainer.problem.evaluate(expected, BATCH, context=CONTEXT)[0], loss, rtol=1e-8)


@pytest.mark.parametrize(
    "hessian", [jm.LBFGS(), pytest.param(jm.BFGS(), marks=pytest.mark.slow)], ids=["L-BFGS", "BFGS"]
)
def test_quasi_newton_trains_what_is_shared(hessian):
    trainer = published(jm.MGRIT(2, **MANY), hessian, start="warm")
    state = trainer.init(TIED, BATCH)
    after, info = jax.jit(trainer.step)(state, BATCH)
    value, gradient = EXACT(TIED, None, None)
    np.testing.assert_allclose(info.objective, value, rtol=1e-10)
    np.testing.assert_allclose(info.grad_norm, optax.tree.norm(gradient), rtol=1e-8)
    moved = jax.tree.map(lambda x, g: x - info.step_size * g, TIED, gradient)
    assert nets.distance(trainer.params(after), moved) < 1e-8 and info.step_size > 0


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def warm():
    """A trainer that keeps warm values, its state after a step, and its jitted step."""
    trainer = one_shot(jm.MGRIT(2), jm.Local(), "warm")
    update = jax.jit(trainer.step)
    return trainer, update(trainer.init(PARAMS, BATCH), BATCH)[0], update


@pytest.mark.parametrize("change", [lambda x: x[::-1], lambda x: x.at[0, 0].add(1e-12), lambda x: x + 1])
def test_another_batch_of_the_same_size_is_noticed(warm, change):
    _, state, update = warm
    _, info = update(state, (change(BATCH[0]), BATCH[1]))
    with pytest.raises(jm.SolveError, match="not the one that the warm values belong to"):
        jm.check(info.result)


def test_the_same_batch_passes_also_after_a_restore_and_a_cold_start(warm):
    trainer, state, update = warm
    other = (BATCH[0] + 1, BATCH[1])
    for known, batch in (
        (state, BATCH),
        (trainer.restore(state, trainer.export(state)), BATCH),
        (trainer.cold(state, other), other),
    ):
        jm.check(update(known, batch)[1].result)


def test_repeated_samples_are_noticed(warm):
    trainer, state, update = warm
    samples = jnp.asarray([0, 2, 2])
    batch = jax.tree.map(lambda x: x[samples], BATCH)
    with pytest.raises(ValueError, match=r"samples names \[2\] more than once"):
        trainer.step(state, batch, samples)
    with pytest.raises(jm.SolveError, match="named more than once"):
        jm.check(update(state, batch, samples)[1].result)


def test_cold_starts_take_batches_of_any_size():
    """Also a smaller last one; nothing of one batch is kept for the next."""
    trainer = one_shot(jm.MGRIT(2), jm.Local())
    update, state = jax.jit(trainer.step), trainer.init(PARAMS, BATCH)
    few = jax.tree.map(lambda x: x[:3], BATCH)
    for batch in (BATCH, few, BATCH, few):
        state, info = update(state, batch)
        fresh, expected = update(trainer.init(trainer.params(state), batch), batch)
        assert info.residual_norm > 0 and not jax.tree.leaves(state.warm)
    again = jax.jit(trainer.step)(trainer.restore(state, trainer.export(state)), BATCH)[1]
    np.testing.assert_array_equal(again.objective, update(state, BATCH)[1].objective)
    assert update._cache_size() == 2, "traced more than once for each size"


def _stacked(**changes):
    return lambda: one_shot(jm.MGRIT(2), jm.Local()).init(PARAMS._replace(**changes), BATCH)


def _stepped(start, batch=BATCH, **given):
    return _step_of(lambda: one_shot(jm.MGRIT(2), jm.Local(), start), PARAMS, batch, **given)


def _step_of(make, params, batch=BATCH, **given):
    def step():
        trainer = make()
        # Nothing is computed for it, so nothing compiled.
        return jax.eval_shape(trainer.step, trainer.init(params, BATCH), batch, **given)

    return step


DEEP = nets.classification(4)
PAIR = [{"b": jnp.ones(WIDTH)}, {"b": jnp.ones(WIDTH)}]
MISUSED = {
    "unknown start, published": (lambda: published(None, jm.LBFGS(), start="samples"), r"start='samples' is unknown"),
    "key, warm, published": (
        _step_of(lambda: published(jm.MGRIT(2), jm.LBFGS(), start="warm"), TIED, key=KEYS[0]),
        r"key: warm values .*jm\.PublishedLoop\(start='cold'\)",
    ),
    "unknown start": (lambda: one_shot(None, jm.Local(), "hot"), r"start='hot' is unknown"),
    "key, warm": (_stepped("warm", key=KEYS[0]), r"key: warm values .*start='cold'"),
    "key, by sample": (_stepped("samples", samples=jnp.arange(4), key=KEYS[0]), r"key: warm values .*start='cold'"),
    "samples, cold": (_stepped("cold", samples=jnp.arange(4)), "samples: with start='cold'"),
    "a number as key": (_stepped("cold", key=3), "is not a random key"),
    "several keys": (_stepped("cold", key=jax.random.split(KEYS[0], 3)), "is not a random key"),
    "other masks side by side": (_stepped("cold", key=jax.random.key(0, impl="rbg")), "generator 'rbg'"),
    "a mask as samples": (_stepped("samples", samples=jnp.arange(4) > 1), r"samples is bool\[4\]; .*integers"),
    "no samples": (_stepped("samples"), "samples: with start='samples'"),
    "smaller batch": (_stepped("warm", jax.tree.map(lambda x: x[:3], BATCH)), r"samples.*start='cold'"),
    "layers=0": (lambda: problem(layers=0), "Problem: layers=0"),
    "no layers": (_stacked(layers={}), r"params\.layers has no leaves.*Problem\(layers=N\)"),
    "tied under layers": (_stacked(layers={"b": PARAMS.layers["b"], "w": jnp.ones((3, 3))}), r"Params\(shared="),
    "no axis": (_stacked(layers={"b": jnp.ones(())}), r"has no axes.*Params\(shared="),
    "function among the layers": (_stacked(layers={"f": jnp.tanh}), "functions are not parameters"),
    "function in the opening": (_stacked(opening={"f": jnp.tanh}), "functions are not parameters"),
    "function that is shared": (_stacked(shared={"f": jnp.tanh}), "functions are not parameters"),
    "another depth": (
        lambda: one_shot(jm.MGRIT(2), jm.Local(), layers=4).init(PARAMS, BATCH),
        r"leading axis 10, but the problem says layers=4.*Params\(shared=",
    ),
    "a list of layers": (
        lambda: jm.OneShot(DEEP[0], optax.sgd(0.1)).init(DEEP[1]._replace(layers=PAIR), DEEP[2]),
        "stack them along a leading axis",
    ),
    "scalar loss": (
        lambda: jm.Problem(lambda t, x: x, step, lambda t, u, y: jnp.mean(u), h=H).evaluate(PARAMS, BATCH),
        r"loss must return \(scalar, aux\)",
    ),
}


@pytest.mark.parametrize("misuse", list(MISUSED))
def test_misuse_is_named_before_anything_is_compiled(misuse):
    call, message = MISUSED[misuse]
    with pytest.raises((TypeError, ValueError), match=message):
        call()
