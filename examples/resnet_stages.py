"""A residual network with three stages of different width on MNIST, in Equinox: a `jm.propagate` for each stage.

    python -m examples.resnet_stages [--quick]

Blocks hold group norm, convolutions and dropout; the layers of a stage are alike: a stage is one stack. All else is an
ordinary training loop with optax. On one device the default solver is the plain scan; `--cycles 2` has each stage
solved by so many multigrid cycles instead, whose gradient is inexact.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import jaxmgrit as jm
from examples.common import advised, arguments, batches, digits, timed


class Block(eqx.Module):
    """The increment of one sample's state, (width, side, side)."""

    norms: list
    convolutions: list
    dropout: eqx.nn.Dropout

    def __init__(self, width, key):
        self.norms = [eqx.nn.GroupNorm(4, width) for _ in range(2)]
        self.convolutions = [eqx.nn.Conv2d(width, width, 3, padding=1, key=k) for k in jax.random.split(key)]
        self.dropout = eqx.nn.Dropout(0.1)

    def __call__(self, u, key):
        """The increment."""
        u = self.convolutions[0](jax.nn.relu(self.norms[0](u)))
        return self.convolutions[1](self.dropout(jax.nn.relu(self.norms[1](u)), key=key))


class ResNet(eqx.Module):
    """Entrances, each halving the images' side, stages, and a classifier."""

    entrances: list
    stages: list
    closing: eqx.nn.Linear

    def __init__(self, widths, depth, key):
        keys = jax.random.split(key, 2 * len(widths) + 1)
        inputs = (1, *widths)
        self.entrances = [
            eqx.nn.Conv2d(inputs[i], w, 3, stride=2, padding=1, key=keys[2 * i]) for i, w in enumerate(widths)
        ]
        self.stages = [
            jm.adapters.equinox.init_stack(lambda key, w=w: Block(w, key), depth, keys[2 * i + 1])
            for i, w in enumerate(widths)
        ]
        self.closing = eqx.nn.Linear(widths[-1], 10, key=keys[-1])

    def __call__(self, images, key, run):
        """Logits of a batch, its stages run by `run`."""
        u = jnp.moveaxis(images, -1, 1)
        for i, (entrance, stage) in enumerate(zip(self.entrances, self.stages, strict=True)):
            u = run(stage, jax.vmap(entrance)(u), jax.random.fold_in(key, i))
        return jax.vmap(self.closing)(u.mean(axis=(2, 3)))


def call(block, u, h, key):
    """A residual layer for a batch, every sample with a key of its own."""
    return u + h * jax.vmap(block)(u, key=jax.random.split(key, len(u)))


def by_propagate(solver=None):
    """A stage by this library."""

    def run(stage, u, key):
        step, theta = jm.adapters.equinox.to_propagate(stage, key=key, call=call)
        return jm.propagate(step, theta, u, h=1.0, solver=solver, adjoint=solver)

    return run


def by_scan(checkpoint=False):
    """A stage by plain JAX."""

    def run(stage, u, key):
        arrays, static = eqx.partition(stage, eqx.is_array)

        def body(u, x):
            return call(eqx.combine(x[0], static), u, 1.0, x[1]), None

        body = jax.checkpoint(body, prevent_cse=False) if checkpoint else body
        return jax.lax.scan(body, u, (arrays, jax.random.split(key, len(jax.tree.leaves(arrays)[0]))))[0]

    return run


def main(argv=None):
    """Train; print accuracy and times, and return the accuracy and how far the loss is from that of plain JAX."""
    options = arguments(__doc__, argv, depth=4, batch=50, epochs=4, cycles=0)
    widths, depth, epochs = ((4, 4, 8), 2, 1) if options.quick else ((8, 16, 32), options.depth, options.epochs)
    data, validation = digits(*((40, 20) if options.quick else (4000, 1000)))
    batch = 20 if options.quick else options.batch
    run = by_propagate(jm.MGRIT(2, levels=2, cycles=options.cycles) if options.cycles else None)
    network, static = eqx.partition(ResNet(widths, depth, jax.random.key(0)), eqx.is_inexact_array)
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, epochs * (len(data[1]) // batch)))

    def loss(network, images, labels, key, run=run):
        output = eqx.combine(network, static)(images, key, run)
        return optax.softmax_cross_entropy_with_integer_labels(output, labels).mean()

    @jax.jit
    def update(network, state, images, labels, key):
        value, gradient = jax.value_and_grad(loss)(network, images, labels, key)
        updates, state = optimizer.update(gradient, state, network)
        return optax.apply_updates(network, updates), state, value

    start, state, key = time.perf_counter(), optimizer.init(network), jax.random.key(1)
    for n, (images, labels) in enumerate(batches(data, batch, epochs)):
        network, state, value = update(network, state, images, labels, jax.random.fold_in(key, n))
    inference = eqx.nn.inference_mode(eqx.combine(network, static))
    predicted = jax.jit(lambda x: inference(x, key, run).argmax(axis=-1))(validation[0])
    accuracy = float((predicted == validation[1]).mean())
    print(f"loss {value:.3f}, accuracy {100 * accuracy:.1f} %, {time.perf_counter() - start:.0f} s")

    args = network, data[0][:batch], data[1][:batch], key
    difference = jnp.abs(loss(*args, run=by_scan()) - loss(*args)) if options.quick else 0.0
    if not options.quick:
        ways = {"scan": by_scan(), "scan, checkpointed": by_scan(True), "jm.propagate": run}
        timed({name: lambda *args, way=way: jax.grad(loss)(*args, way) for name, way in ways.items()}, *args)
        step, theta = jm.adapters.equinox.to_propagate(inference.stages[-1], key=key, call=call)
        advised(options.advise, "the last stage", step, theta, jax.random.normal(key, (batch, widths[-1], 4, 4)), 1.0)
    return accuracy, float(difference)


if __name__ == "__main__":
    main()
