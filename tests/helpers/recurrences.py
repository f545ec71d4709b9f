"""Recurrences with shared weights: cells that forget, cells that latch, and one that is chaotic."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from helpers import networks as nets


def gru_weights(inputs, width, seed=3, scale=1.0):
    """Weights of `gru`, as a random initialisation leaves them."""
    rng = np.random.default_rng(seed)

    def normal(n, m):
        return jnp.asarray(scale * rng.normal(size=(n, m)) / np.sqrt(width))

    return {"x": normal(inputs, 3 * width), "u": normal(width, 3 * width), "b": jnp.zeros(3 * width)}


def gru(weights, x, u):
    """One step of a gated recurrent unit."""
    xr, xz, xn = jnp.split(x @ weights["x"] + weights["b"][None], 3, axis=-1)
    ur, uz, un = jnp.split(u @ weights["u"], 3, axis=-1)
    keep = jax.nn.sigmoid(xz + uz)
    new = jnp.tanh(xn + jax.nn.sigmoid(xr + ur) * un)
    return new + keep * (u - new)


def lstm(weights, x, u):
    """One step of a long short-term memory, whose state is a pair."""
    i, f, o, g = jnp.split(x @ weights["x"] + u["hidden"] @ weights["u"], 4, axis=-1)
    cell = jax.nn.sigmoid(f) * u["cell"] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return {"cell": cell, "hidden": jax.nn.sigmoid(o) * jnp.tanh(cell)}


def lstm_weights(inputs, width, seed=5):
    """Weights of `lstm`."""
    rng = np.random.default_rng(seed)
    w, v = rng.normal(size=(inputs, 4 * width)), rng.normal(size=(width, 4 * width))
    return {"x": jnp.asarray(0.5 * w), "u": jnp.asarray(v / np.sqrt(width))}


def inputs(layers, batch=3, width=2, seed=4):
    """Inputs of a recurrence, leading axis N."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(layers, batch, width)))


def pulses(layers, batch, rate, seed=1):
    """Inputs of a latch, now and then a pulse of either sign in some noise; and the sign of the last pulse."""
    rng = np.random.default_rng(seed)
    sign = np.where(rng.random((layers, batch)) < 0.5, -1.0, 1.0)
    pulse = rng.random((layers, batch)) < rate
    pulse[0] = True
    x = np.stack([np.where(pulse, sign, 0.0) + 0.1 * rng.normal(size=sign.shape), pulse], axis=-1)
    last = np.maximum.accumulate(np.where(pulse, np.arange(layers)[:, None], 0))
    return jnp.asarray(x), jnp.asarray(np.take_along_axis(sign, last, 0))


def trained_latch(width=8, length=100, iterations=300):
    """Weights of a GRU trained to hold the sign of the last pulse."""
    weights = gru_weights(2, width)
    x, sign = pulses(length, 64, 0.03, seed=0)

    def loss(weights):
        states = nets.scan_states(lambda x, u, h: gru(weights, x, u), x, jnp.zeros((64, width)), 1.0)
        return jnp.mean((states[1:, :, 0] - sign) ** 2)

    optimizer = nets.promoting(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-2)))

    @jax.jit
    def run(weights):
        def one(carry, _):
            weights, state = carry
            value, gradient = jax.value_and_grad(loss)(weights)
            updates, state = optimizer.update(gradient, state, weights)
            return (optax.apply_updates(weights, updates), state), value

        return jax.lax.scan(one, (weights, optimizer.init(weights)), None, length=iterations)

    (weights, _), losses = run(weights)
    assert losses[-1] < 0.01, "the latch must have learnt for the tests to say anything"
    return weights


def lorenz(theta, u, h):
    """One step of the classical Runge-Kutta method for the Lorenz system."""

    def field(u):
        x, y, z = jnp.split(u, 3, axis=-1)
        return jnp.concatenate([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], axis=-1)

    k1 = field(u)
    k2 = field(u + h / 2 * k1)
    k3 = field(u + h / 2 * k2)
    k4 = field(u + h * k3)
    return u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
