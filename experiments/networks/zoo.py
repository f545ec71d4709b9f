"""Networks of many kinds, made by seeded code: what claims about "every network" are measured on.

Each is a step `Phi(theta, u, h)`, parameters with leading axis N, a state and a step size. Recurrences have their
inputs as `theta` and close over their shared weights; trained ones are trained when they are made.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.networks.architecture import Layer, State, Step
from experiments.networks.blocks import (
    gru_cell,
    gru_weights,
    layer_norm,
    normal,
    runge_kutta,
    transformer_block,
    transformer_parameters,
)

PyTree = Any


class Specimen(NamedTuple):
    """One network of the zoo.

    Attributes:
        name: what it is.
        step: Phi(theta, u, h) -> u_next.
        theta: parameters (or inputs), every leaf with leading axis N.
        u0: the first state.
        h: step size.
        about: "smooth" or "rough" layers, "recurrent" (shared weights, forgets), or "chaotic".
    """

    name: str
    step: Callable[[PyTree, PyTree, Any], PyTree]
    theta: PyTree
    u0: State
    h: float
    about: str

    @property
    def layers(self) -> int:
        """N."""
        return int(jax.tree.leaves(self.theta)[0].shape[0])


# Residual layers u + h tanh(u W + b).


def _tanh(name: str, layers: int, total: float, smooth: bool, batch: int = 32, width: int = 8) -> Specimen:
    random = np.random.default_rng(1)
    if smooth:
        first, last = random.normal(size=(2, width, width)) * 0.5
        t = np.linspace(0, 1, layers)[:, None, None]
        w = jnp.asarray(first + t * (last - first), jnp.float32)
    else:
        w = normal(random, layers, width, width, scale=0.3)
    theta = {"w": w, "b": jnp.zeros((layers, width), jnp.float32)}

    def step(p: Layer, u: jax.Array, h: Step) -> jax.Array:
        return u + h * jnp.tanh(u @ p["w"] + p["b"])

    return Specimen(name, step, theta, normal(random, batch, width), total / layers, "smooth" if smooth else "rough")


def _linear(layers: int = 256, width: int = 8, batch: int = 16) -> Specimen:
    random = np.random.default_rng(2)

    def step(p: jax.Array, u: jax.Array, h: Step) -> jax.Array:
        return u + h * (u @ p)

    theta = normal(random, layers, width, width, scale=0.3)
    return Specimen("linear", step, theta, normal(random, batch, width), 4 / layers, "rough")


# Networks as people train them: pre-norm blocks, branches scaled by 1/sqrt(N).


def _mlp(layers: int = 64, width: int = 64, batch: int = 64) -> Specimen:
    random = np.random.default_rng(3)
    theta = {
        "w1": normal(random, layers, width, 4 * width, scale=width**-0.5),
        "w2": normal(random, layers, 4 * width, width, scale=(4 * width) ** -0.5),
    }

    def step(p: Layer, u: jax.Array, h: Step) -> jax.Array:
        return u + h * (jax.nn.gelu(layer_norm(u) @ p["w1"]) @ p["w2"])

    return Specimen("pre-LN MLP", step, theta, normal(random, batch, width), layers**-0.5, "rough")


def _transformer(trained: int, layers: int = 32, width: int = 16, batch: int = 16, length: int = 16) -> Specimen:
    random = np.random.default_rng(4)
    step, h = transformer_block(heads=2), (2 * layers) ** -0.5
    theta, u0 = transformer_parameters(random, layers, width), normal(random, batch, length, width)
    if trained:
        # To reproduce, at every place, what stood there one before: attention has to be learnt for it.
        target = jnp.roll(u0, 1, axis=1).at[:, 0].set(0.0)

        def loss(p: PyTree) -> jax.Array:
            return jnp.mean((_scan(step, p, u0, h) - target) ** 2)

        theta = _train(loss, theta, trained, 3e-3)
    name = f"pre-LN transformer, {'trained' if trained else 'at init'}"
    return Specimen(name, step, theta, u0, h, "rough")


def _convolution(layers: int = 64, channels: int = 8, side: int = 14, batch: int = 8) -> Specimen:
    random = np.random.default_rng(5)
    theta = normal(random, layers, 3, 3, channels, channels, scale=(9 * channels) ** -0.5)

    def step(p: jax.Array, u: jax.Array, h: Step) -> jax.Array:
        groups = u.reshape(*u.shape[:3], 4, -1)
        mean = jnp.mean(groups, (1, 2, 4), keepdims=True)
        spread = jax.lax.rsqrt(jnp.mean((groups - mean) ** 2, (1, 2, 4), keepdims=True) + 1e-5)
        x = jax.nn.relu(((groups - mean) * spread).reshape(u.shape))
        return u + h * jax.lax.conv_general_dilated(x, p, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    u0 = normal(random, batch, side, side, channels)
    return Specimen("convolution, group norm", step, theta, u0, layers**-0.5, "rough")


# Recurrences: theta are the inputs, the weights are shared.


def _gru(layers: int = 1024, width: int = 8, batch: int = 8, inputs: int = 4) -> Specimen:
    random = np.random.default_rng(6)
    step = gru_cell(gru_weights(random, inputs, width))
    u0 = jnp.zeros((batch, width), jnp.float32)
    return Specimen("GRU, random", step, normal(random, layers, batch, inputs), u0, 1.0, "recurrent")


def _latch(layers: int = 1024, width: int = 8, batch: int = 16, steps: int = 600) -> Specimen:
    """A GRU trained to remember the sign of its first input."""
    random = np.random.default_rng(7)
    weights, short = gru_weights(random, 2, width), 128

    weights["b"] = weights["b"].at[width : 2 * width].set(3.0)  # to keep is what there is to learn

    def sequence(length: int, samples: int) -> tuple[jax.Array, jax.Array]:
        sign = np.where(random.random(samples) < 0.5, -1.0, 1.0)
        x = random.normal(size=(length, samples, 2)) * [0.3, 0.0]
        # The second input, zero elsewhere, says when to look.
        x[0] = np.stack([sign, np.ones(samples)], axis=1)
        return jnp.asarray(x, jnp.float32), jnp.asarray(sign, jnp.float32)

    x, sign = sequence(short, 128)

    def loss(w: PyTree) -> jax.Array:
        final = _scan(gru_cell(w), x, jnp.zeros((128, width), jnp.float32), 1.0)
        return jnp.mean((final[:, 0] - sign) ** 2)

    weights = _train(loss, weights, steps, 2e-2)
    u0 = jnp.zeros((batch, width), jnp.float32)
    return Specimen("GRU, trained to latch a sign", gru_cell(weights), sequence(layers, batch)[0], u0, 1.0, "recurrent")


def _lstm(layers: int = 512, width: int = 8, batch: int = 8, inputs: int = 4) -> Specimen:
    random = np.random.default_rng(8)
    w, v = normal(random, inputs, 4 * width, scale=0.5), normal(random, width, 4 * width, scale=width**-0.5)

    def step(x: jax.Array, u: State, h: Step) -> PyTree:
        gates = x @ w + u["hidden"] @ v
        i, f, o, g = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * u["cell"] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return {"cell": cell, "hidden": jax.nn.sigmoid(o) * jnp.tanh(cell)}

    zero = jnp.zeros((batch, width), jnp.float32)
    return Specimen(
        "LSTM", step, normal(random, layers, batch, inputs), {"cell": zero, "hidden": zero}, 1.0, "recurrent"
    )


def _tanh_rnn(gain: float, layers: int = 256, width: int = 32, batch: int = 4) -> Specimen:
    random = np.random.default_rng(9)
    w = normal(random, width, width, scale=gain * width**-0.5)

    def step(x: jax.Array, u: jax.Array, h: Step) -> jax.Array:
        return jnp.tanh(u @ w + x)

    about = "chaotic" if gain > 1 else "recurrent"
    theta, u0 = normal(random, layers, batch, width, scale=0.3), normal(random, batch, width)
    return Specimen(f"tanh RNN, g = {gain:g}", step, theta, u0, 1.0, about)


# Time steppers: theta is a control.


def _pendulum(layers: int = 1024, batch: int = 1) -> Specimen:
    def field(force: jax.Array, u: jax.Array) -> jax.Array:
        angle, speed = u[..., 0], u[..., 1]
        return jnp.stack([speed, force - jnp.sin(angle) - 0.1 * speed], axis=-1)

    force = jnp.sin(jnp.linspace(0, 6, layers, dtype=jnp.float32))
    u0 = jnp.tile(jnp.asarray([[1.0, 0.0]], jnp.float32), (batch, 1))
    return Specimen("RK4 pendulum", runge_kutta(field), force, u0, 10 / layers, "smooth")


def _lorenz(layers: int = 2048, batch: int = 1) -> Specimen:
    def field(force: jax.Array, u: jax.Array) -> jax.Array:
        x, y, z = u[..., 0], u[..., 1], u[..., 2]
        return jnp.stack([10 * (y - x) + force, x * (28 - z) - y, x * y - 8 / 3 * z], axis=-1)

    u0 = jnp.tile(jnp.asarray([[1.0, 1.0, 20.0]], jnp.float32), (batch, 1))
    # Without effect, but a network needs parameters with leading axis N.
    force = jnp.zeros((layers,), jnp.float32)
    return Specimen("RK4 Lorenz", runge_kutta(field), force, u0, 20 / layers, "chaotic")


def _scan(step: Callable[..., PyTree], theta: PyTree, u0: State, h: Step) -> Any:
    return jax.lax.scan(lambda u, p: (step(p, u, h), None), u0, theta)[0]


def _train(loss: Callable[[PyTree], jax.Array], params: PyTree, iterations: int, rate: float) -> PyTree:
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    @jax.jit
    def run(params: PyTree) -> PyTree:
        def one(carry: PyTree, _: None) -> tuple[PyTree, None]:
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(one, (params, optimizer.init(params)), None, length=iterations)[0][0]

    return run(params)


MAKERS: dict[str, Callable[[], Specimen]] = {
    "tanh smooth T5": lambda: _tanh("tanh, smooth, T = 5", 1024, 5.0, True),
    "tanh smooth T20": lambda: _tanh("tanh, smooth, T = 20", 1024, 20.0, True, batch=500),
    "tanh rough T5": lambda: _tanh("tanh, independent, T = 5", 256, 5.0, False),
    "tanh rough T20": lambda: _tanh("tanh, independent, T = 20", 256, 20.0, False),
    "mlp": _mlp,
    "transformer init": lambda: _transformer(0),
    "transformer trained": lambda: _transformer(300),
    "convolution": _convolution,
    "gru": _gru,
    "gru latch": _latch,
    "lstm": _lstm,
    "rnn 0.9": lambda: _tanh_rnn(0.9),
    "rnn 3": lambda: _tanh_rnn(3.0),
    "pendulum": _pendulum,
    "lorenz": _lorenz,
    "linear": _linear,
}


@cache
def make(key: str) -> Specimen:
    """A network of the zoo by its key in `MAKERS`, in float32; made once a process."""
    # Tests run in float64 with strict promotion; specimens are the same wherever they are made.
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return MAKERS[key]()
