"""Batches that are mixed up are noticed, and misuse of a trainer is named before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks as nets
from helpers.common import BATCH, KEYS, PARAMS, TIED, WIDTH, one_shot, problem, published, step

import jaxmgrit as jm


@pytest.fixture(scope="module", autouse=True)
def _as_optax_wants_it():
    """Adam promotes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


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


@pytest.mark.slow
def test_repeated_samples_are_noticed(warm):
    trainer, state, update = warm
    samples = jnp.asarray([0, 2, 2])
    batch = jax.tree.map(lambda x: x[samples], BATCH)
    with pytest.raises(ValueError, match=r"samples names \[2\] more than once"):
        trainer.step(state, batch, samples)
    with pytest.raises(jm.SolveError, match="named more than once"):
        jm.check(update(state, batch, samples)[1].result)


@pytest.mark.slow
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
        lambda: jm.Problem(lambda t, x: x, step, lambda t, u, y: jnp.mean(u), h=0.2).evaluate(PARAMS, BATCH),
        r"loss must return \(scalar, aux\)",
    ),
}


@pytest.mark.parametrize("misuse", list(MISUSED))
def test_misuse_is_named_before_anything_is_compiled(misuse):
    call, message = MISUSED[misuse]
    with pytest.raises((TypeError, ValueError), match=message):
        call()
