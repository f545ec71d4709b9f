"""A network with shared parameters, a context and random layers, trained plainly and by the library's trainers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmgrit as jm

LAYERS, WIDTH, SAMPLES, H, STEPS = 10, 3, 4, 0.2, 3
MANY = {"cycles": 6}
RNG = np.random.default_rng(0)


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


def published(solver, hessian, backend=LOCAL, start="cold"):
    return jm.PublishedLoop(
        problem(layers=LAYERS), solver, solver, hessian, initial_step=2.0, backend=backend, start=start
    )
