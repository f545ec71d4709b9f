"""A neural ODE whose layers share one right-hand side, trained one-shot to tell three spirals apart.

    python -m examples.neural_ode [--quick]

The layers are steps of the midpoint rule in time; no parameter belongs to one of them (`Problem(layers=N)`,
`Params(shared=...)`). The gradients of all layers are summed, on several devices over the devices too.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmgrit as jm
from examples.common import advised, arguments, timed

CLASSES, WIDTH, TIME = 3, 8, 3.0


def spirals(points, seed):
    """Points (points, 2) of three spirals, and which each is on; a tenth of the labels are drawn anew."""
    rng = np.random.default_rng(seed)
    label, radius = rng.integers(0, CLASSES, points), rng.uniform(0.1, 1.0, points)
    angle = 4 * radius + 2 * np.pi * label / CLASSES + 0.15 * rng.normal(size=points)
    given = np.where(rng.random(points) < 0.1, rng.integers(0, CLASSES, points), label)
    return jnp.asarray((radius * np.stack([np.cos(angle), np.sin(angle)])).T, jnp.float32), jnp.asarray(given)


def rate(shared, u):
    """The right-hand side du/dt."""
    return jnp.tanh(u @ shared["in"] + shared["bias"]) @ shared["out"]


def step(theta, u, h, common):
    """The midpoint rule."""
    return u + h * rate(common.shared, u + h / 2 * rate(common.shared, u))


def loss(closing, u, y):
    """Cross-entropy, and accuracy."""
    logits = u @ closing
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), (logits.argmax(axis=-1) == y).mean()


def init(key):
    """Parameters: none of single layers."""
    keys = jax.random.split(key, 4)
    draw = lambda key, *shape: jax.random.normal(key, shape) / shape[0] ** 0.5  # noqa: E731
    shared = {
        "in": draw(keys[0], WIDTH, 4 * WIDTH),
        "bias": jnp.zeros(4 * WIDTH),
        "out": draw(keys[1], 4 * WIDTH, WIDTH),
    }
    return jm.Params(draw(keys[2], 2, WIDTH), {}, draw(keys[3], WIDTH, CLASSES), shared=shared)


def plain(params, batch, problem, checkpoint):
    """The same loss by `lax.scan`."""

    def body(u, _):
        return step(None, u, problem.h, jm.Common(params.shared, None, None)), None

    body = jax.checkpoint(body, prevent_cse=False) if checkpoint else body
    u, _ = jax.lax.scan(body, problem.opening(params.opening, batch[0]), None, problem.layers)
    return loss(params.closing, u, batch[1])[0]


def main(argv=None):
    """Train one-shot and sequentially; print and return the validation losses."""
    options = arguments(__doc__, argv, depth=32, points=512, iterations=150)
    depth, iterations = (16, 60) if options.quick else (options.depth, options.iterations)
    problem = jm.Problem(lambda p, x: x @ p, step, loss, h=TIME / depth, layers=depth)
    batch, validation = spirals(options.points, 0), spirals(1000, 1)
    params, cycle = init(jax.random.key(0)), jm.MGRIT(4, levels=2, cycles=1)
    losses = {}
    for name, solver in {"sequential": jm.Sequential(), "one-shot": cycle}.items():
        optimizer = optax.adam(optax.cosine_decay_schedule(0.01, iterations))
        trainer = jm.OneShot(problem, optimizer, solver=solver, adjoint=solver)
        state, start = trainer.init(params, batch), time.perf_counter()
        update = jax.jit(trainer.step, donate_argnums=0)
        for _ in range(iterations):
            state, info = update(state, batch)
        value, accuracy = problem.evaluate(trainer.params(state), validation)
        losses[name] = float(value)
        print(
            f"{name:10} training loss {info.loss:.4f}, validation loss {value:.4f}, accuracy {100 * accuracy:.1f} %, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )
    if not options.quick:
        ways = {
            f"scan{', checkpointed' * c}": (lambda s, b, c=c: jax.value_and_grad(plain)(params, b, problem, c))
            for c in (0, 1)
        }
        timed(ways | {"one-shot": trainer.step}, trainer.init(params, batch), batch, repeats=20)
        common, u0 = jm.Common(params.shared, None, None), problem.opening(params.opening, batch[0])
        layer = lambda _, u, h: step(None, u, h, common)  # noqa: E731
        advised(options.advise, "at initialisation", layer, jnp.zeros((depth, 1)), u0, problem.h)
    return losses


if __name__ == "__main__":
    main()
