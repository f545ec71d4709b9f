"""Digits read pixel by pixel: a recurrence over 784 steps solved in parallel by Newton, and a GRU by `lax.scan`.

    python -m examples.pixel_recurrence [--quick]

Every channel of the recurrence meets itself alone (weights are shared by all steps, and diagonal), so that the Jacobian
of an interval is one number per channel and `jm.Newton(jacobian="channels")` costs about two steps per step.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import optax

import jaxmgrit as jm
from examples.common import advised, arguments, batches, digits, timed

NEWTON = jm.Newton(jacobian="channels")


def cell(own, u, x):
    """A gated unit with diagonal weights; x: what comes in, of gate and candidate."""
    gate = jax.nn.sigmoid(x[0] + own["gate"] * u)
    return gate * u + (1 - gate) * jnp.tanh(x[1] + own["candidate"] * u)


def diagonal(own, xs, scan):
    """One recurrence over (784, batch, inputs): its states at all steps, (784, batch, width)."""
    gate, candidate = jnp.split(xs @ own["weights"] + own["bias"], 2, axis=-1)

    def f(u, x):
        u = cell(own, u, x)
        return u, u

    return scan(f, jnp.zeros(gate.shape[1:]), (gate, candidate))[1]


def gru(own, xs, scan):
    """The full GRU, for comparison."""
    width = own["recurrent"].shape[0]

    def f(u, x):
        x, y = x @ own["weights"] + own["bias"], u @ own["recurrent"]
        gate, reset = jnp.split(jax.nn.sigmoid(x[:, : 2 * width] + y[:, : 2 * width]), 2, axis=-1)
        u = gate * u + (1 - gate) * jnp.tanh(x[:, 2 * width :] + reset * y[:, 2 * width :])
        return u, u

    return scan(f, jnp.zeros((xs.shape[1], width)), xs)[1]


def init(key, width, full):
    """Two recurrences and a classifier."""

    def recurrence(key, inputs):
        weights, recurrent = jax.random.split(key)
        gates = 3 if full else 2
        bias = jnp.zeros(gates * width).at[:width].set(jnp.linspace(1.0, 5.0, width))  # memories of many lengths
        own = {"weights": jax.random.normal(weights, (inputs, gates * width)) / inputs**0.5, "bias": bias}
        if full:
            return own | {"recurrent": jax.nn.initializers.orthogonal()(recurrent, (width, 3 * width))}
        return own | {"gate": jnp.zeros(width), "candidate": 0.5 * jnp.ones(width)}

    keys = jax.random.split(key, 3)
    first, second = recurrence(keys[0], 1), recurrence(keys[1], width)
    return {"layers": [first, second], "out": jax.random.normal(keys[2], (width, 10)) / width**0.5}


def logits(params, images, layer, scan):
    """From images (batch, 28, 28, 1): the mean over all pixels of the second recurrence's states, classified."""
    xs = jnp.moveaxis(images.reshape(len(images), -1, 1), 1, 0)
    for own in params["layers"]:
        xs = layer(own, xs, scan)
    return xs.mean(axis=0) @ params["out"]


def loss(params, images, labels, layer, scan):
    """Cross-entropy."""
    output = logits(params, images, layer, scan)
    return optax.softmax_cross_entropy_with_integer_labels(output, labels).mean()


def train(layer, scan, data, validation, width, batch, epochs):
    """Accuracy on the validation digits after training, by the plain scan."""
    params = init(jax.random.key(0), width, layer is gru)
    schedule = optax.cosine_decay_schedule(1e-2, epochs * (len(data[1]) // batch))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    state = optimizer.init(params)

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, images, labels):
        gradient = jax.grad(loss)(params, images, labels, layer, scan)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    for images, labels in batches(data, batch, epochs):
        params, state = update(params, state, images, labels)
    predicted = jax.jit(lambda x: logits(params, x, layer, jax.lax.scan).argmax(axis=-1))(validation[0])
    return float((predicted == validation[1]).mean())


def main(argv=None):
    """Train all three, print accuracies and times."""
    options = arguments(__doc__, argv, width=32, batch=50, epochs=8)
    width, batch, epochs = (8, 20, 2) if options.quick else (options.width, options.batch, options.epochs)
    data, validation = digits(*((40, 20) if options.quick else (4000, 1000)))
    newton = partial(jm.scan, solver=NEWTON)
    contenders = {"scan": (diagonal, jax.lax.scan), "Newton": (diagonal, newton), "scan, GRU": (gru, jax.lax.scan)}
    accuracy = {}
    for name, (layer, scan) in contenders.items():
        start = time.perf_counter()
        accuracy[name] = train(layer, scan, data, validation, width, batch, epochs)
        print(f"{name:10} accuracy {100 * accuracy[name]:.1f} %, {time.perf_counter() - start:.0f} s", flush=True)
    if not options.quick:
        args = init(jax.random.key(0), width, False), data[0][:batch], data[1][:batch]
        again = lambda f, *args: jax.lax.scan(jax.checkpoint(f, prevent_cse=False), *args)  # noqa: E731
        ways = {"scan": jax.lax.scan, "scan, checkpointed": again, "jm.scan": jm.scan, "jm.scan, Newton": newton}
        timed({name: jax.grad(partial(loss, layer=diagonal, scan=scan)) for name, scan in ways.items()}, *args)
        own, xs = args[0]["layers"][0], jnp.moveaxis(args[1].reshape(batch, -1, 1), 1, 0)
        xs, u0 = jnp.split(xs @ own["weights"] + own["bias"], 2, axis=-1), jnp.zeros((batch, width))
        advised(options.advise, "the first recurrence", lambda x, u, h: cell(own, u, x), xs, u0, 1.0)
    return accuracy


if __name__ == "__main__":
    main()
