"""The small networks, comparisons and instruments that the tests share."""

from __future__ import annotations

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmgrit as jm

WIDTH, BATCH = 4, 3


def tanh_step(theta, u, h):
    """A residual layer u + h tanh(u W + b)."""
    return u + h * jnp.tanh(u @ theta["w"] + theta["b"][None])


def rough(layers, width=WIDTH, seed=0, scale=0.5):
    """Parameters of `tanh_step`, every layer drawn by itself."""
    rng = np.random.default_rng(seed)
    w, b = rng.normal(size=(layers, width, width)), rng.normal(size=(layers, width))
    return {"w": jnp.asarray(scale * w), "b": jnp.asarray(scale * b)}


def smooth(layers, width=WIDTH, seed=0, scale=0.5):
    """Parameters of `tanh_step`, sampled from one smooth theta(t), t in (0, 1)."""
    rng = np.random.default_rng(seed)
    t = (np.arange(layers) + 0.5) / layers
    waves = np.stack([np.ones(layers), np.cos(np.pi * t), np.sin(2 * np.pi * t)], axis=1)
    w = np.tensordot(waves, rng.normal(size=(3, width, width)), 1)
    b = np.tensordot(waves, rng.normal(size=(3, width)), 1)
    return {"w": jnp.asarray(scale * w), "b": jnp.asarray(scale * b)}


def state(width=WIDTH, batch=BATCH, seed=1):
    """A batch of states."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, width)))


def keyed(key):
    """A number that depends on a key, without the cost of compiling a random generator."""
    return (jax.random.key_data(key)[..., -1] % 7).astype(float) / 7.0


def steps_of_unequal_size(layers, total, seed=2):
    """One step size per layer, summing to `total`."""
    h = np.random.default_rng(seed).uniform(0.5, 1.5, size=layers)
    return jnp.asarray(total * h / h.sum())


def tanh_cost(theta, u, h):
    """A running cost that depends on state, parameters and step size."""
    return h * (0.1 * jnp.sum(u * u) + jnp.sum(theta["w"] ** 2 * theta["b"][:, None]))


def _layers(theta, u0, h):
    """What to scan over: each layer's parameters and step size."""
    layers = jax.tree.leaves(theta)[0].shape[0]
    dtype = jnp.finfo(jax.tree.leaves(u0)[0].dtype).dtype
    return theta, jnp.broadcast_to(jnp.asarray(h, dtype), (layers,))


def scan(step, theta, u0, h):
    """The plain JAX program that the library replaces."""
    return jax.lax.scan(lambda u, layer: (step(layer[0], u, layer[1]), None), u0, _layers(theta, u0, h))[0]


def scan_states(step, theta, u0, h):
    """u^0 .. u^N by the plain JAX program, leading axis N + 1."""
    final, before = jax.lax.scan(lambda u, layer: (step(layer[0], u, layer[1]), u), u0, _layers(theta, u0, h))
    return jax.tree.map(lambda rest, last: jnp.concatenate([rest, last[None]]), before, final)


def scan_cost(step, cost, theta, u0, h):
    """The sum of a running cost over the layers by plain JAX."""

    def one(u, layer):
        return step(layer[0], u, layer[1]), cost(layer[0], u, layer[1])

    return jnp.sum(jax.lax.scan(one, u0, _layers(theta, u0, h))[1])


def distance(a, b):
    """The largest difference of two pytrees, relative to the largest entry of the second, leaf by leaf."""
    assert jax.tree.structure(a) == jax.tree.structure(b)

    def one(x, y):
        x, y = np.asarray(x), np.asarray(y)
        assert x.shape == y.shape, f"{x.shape} and {y.shape}"
        scale = np.max(np.abs(y), initial=0.0)
        return float(np.max(np.abs(x - y), initial=0.0) / (scale if scale > 0 else 1.0))

    return max(jax.tree.leaves(jax.tree.map(one, a, b)), default=0.0)


def in_double(x):
    """A floating-point array in double precision; others as they are."""
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def mesh(devices):
    """A backend over so many of the forced host devices."""
    if devices == 1:
        return jm.Local()
    axis = (jax.sharding.AxisType.Auto,)
    return jm.Mesh(jax.make_mesh((devices,), ("layers",), axis_types=axis, devices=jax.devices()[:devices]))


def promoting(optimizer):
    """An optax transformation whose own arithmetic may promote dtypes (Adam's bias correction does)."""

    def update(gradients, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(gradients, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def solved(step, theta, u0, h, solver, adjoint=None, *, cost=None, backend=None, lam_final=None, guess=(None, None)):
    """State, adjoint and layer gradients; the final adjoint is half the final state unless given."""
    on = {} if backend is None else {"backend": backend}
    sol = jm.solve(step, theta, u0, h=h, solver=solver, guess=guess[0], **on)
    lam_final = jax.tree.map(partial(jnp.multiply, 0.5), sol.u_final) if lam_final is None else lam_final
    adj = jm.adjoint_solve(
        step, theta, sol, lam_final, h=h, solver=adjoint or solver, guess=guess[1], running_cost=cost, **on
    )
    return sol, adj, jm.layer_gradients(step, theta, sol, adj, h=h, running_cost=cost, **on)


def inner(a, b):
    """The inner product of two pytrees."""
    return float(sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b))))


def central_difference(f, at, direction, t=1e-5):
    """The derivative of f along a direction."""

    def moved(by):
        return f(jax.tree.map(lambda x, d: x + by * d, at, direction))

    return float((moved(t) - moved(-t)) / (2 * t))


def opening(theta, x):
    """The opening layer of `classification`."""
    return jnp.tanh(x @ theta["w"] + theta["b"][None])


def cross_entropy(theta, u, y):
    """The closing layer and loss of `classification`: mean cross-entropy; aux is the accuracy."""
    logits = u @ theta["w"] + theta["b"][None]
    loss = -jnp.mean(jnp.sum(y * jax.nn.log_softmax(logits), axis=1))
    return loss, jnp.mean(jnp.argmax(logits, axis=1) == jnp.argmax(y, axis=1))


def classification(layers, *, total=5.0, batch=12, initial=smooth, **terms):
    """A small classification problem: (problem, parameters, batch). `terms` are running_cost, penalty or h."""
    rng = np.random.default_rng(7)
    x = rng.uniform(-2.0, 2.0, size=(batch, 2))
    y = np.eye(3)[(x[:, 0] * x[:, 1] > 0).astype(int) + (x[:, 0] > 1)]

    def dense(n, m):
        return {"w": jnp.asarray(0.5 * rng.normal(size=(n, m))), "b": jnp.zeros(m)}

    problem = jm.Problem(opening, tanh_step, cross_entropy, **{"h": total / layers, **terms})
    params = jm.Params(dense(2, WIDTH), initial(layers, scale=0.3), dense(WIDTH, 3))
    return problem, params, (jnp.asarray(x), jnp.asarray(y))


def recording():
    """An optax transformation that leaves the parameters alone and keeps the last gradient as its state."""

    def update(gradients, state, params=None):
        return jax.tree.map(jnp.zeros_like, gradients), gradients

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def exact_objective(problem, params, batch):
    """J by plain JAX."""
    u0 = problem.opening(params.opening, batch[0])
    u = scan(problem.step, params.layers, u0, problem.h)
    value = problem.loss(params.closing, u, batch[1])[0]
    if problem.running_cost is not None:
        value += scan_cost(problem.step, problem.running_cost, params.layers, u0, problem.h)
    return value if problem.penalty is None else value + problem.penalty(params)


def conventional(problem, params, batch, optimizer, iterations):
    """Training by plain JAX and optax: (parameters after every iteration, objectives before)."""

    @jax.jit
    def update(params, state):
        value, gradient = jax.value_and_grad(lambda p: exact_objective(problem, p, batch))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, history, values = optimizer.init(params), [], []
    for _ in range(iterations):
        params, state, value = update(params, state)
        history.append(params)
        values.append(float(value))
    return history, values


def penalty(params):
    """Tikhonov on everything, and smoothness in depth."""
    tikhonov = sum(jnp.sum(x * x) for x in jax.tree.leaves(params))
    rough = sum(jnp.sum((x[1:] - x[:-1]) ** 2) for x in jax.tree.leaves(params.layers))
    return 1e-3 * tikhonov + 1e-2 * rough


def slow_but(quick, cases):
    """Parameters of a test, all marked slow but the quick ones."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if case in quick else pytest.mark.slow)
        for case in cases
    ]


_COMPILED: list[str] = []


def _note(event, duration, fun_name="", **_):
    if event == "/jax/core/compile/backend_compile_duration":
        _COMPILED.append(fun_name.removeprefix("jit(").removesuffix(")"))


jax.monitoring.register_event_duration_secs_listener(_note)


@contextlib.contextmanager
def compilations():
    """Names of the programs compiled inside the block, in a list that fills as they are."""
    _COMPILED.clear()
    yield _COMPILED
