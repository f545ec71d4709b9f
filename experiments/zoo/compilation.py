"""How long programs take to trace and compile: `python -m experiments.zoo.compilation [--layers N] ...`.

Pre-norm transformer blocks: value and gradient by scans and by `jm.propagate`, and a step of training, sequential and
one-shot. Every program is compiled anew in turns, with JAX's caches emptied before; medians, on one core, float32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from experiments.config.arguments import Parser, at_least
from experiments.runs import terminal
from experiments.timing import turns

PyTree = Any
Program = tuple[Callable[..., PyTree], tuple[PyTree, ...]]

GRADIENTS, STEPS = "value and gradient", "step of training"
# What the ratios of either kind are to.
REFERENCES = {GRADIENTS: "checkpointed scan", STEPS: "sequential, checkpointed scan"}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = Parser("python -m experiments.zoo.compilation", description="Compile times of transformer blocks.")
    parser.add_argument("--layers", type=at_least(8), default=64, metavar="N", help="blocks")
    parser.add_argument("--width", type=at_least(4), default=64, help="features; four heads")
    parser.add_argument("--factor", type=at_least(2), default=8, metavar="M", help="blocks per interval")
    parser.add_argument("--repeats", type=at_least(1), default=5, help="turns")
    options = parser.parse(sys.argv[1:] if words is None else words)
    where = turns.pin()  # before JAX starts its threads
    import jax

    import jaxmgrit as jm

    print(f"jaxmgrit {jm.__version__}, jax {jax.__version__}, {jax.default_backend()}, float32, {where}")
    print(f"{options.layers} transformer blocks, {options.width} features, m = {options.factor}")
    for kind, programs in _programs(options).items():
        seconds = compile_times(programs, options.repeats)
        print(kind)
        for name, value in seconds.items():
            print(f"  {name:42} {value:6.2f} s  {value / seconds[REFERENCES[kind]]:5.2f}", flush=True)
    return 0


def compile_times(programs: dict[str, Program], repeats: int) -> dict[str, float]:
    """Median seconds of tracing and compiling, each program's; a program is a function and its arguments."""
    import jax

    samples: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, (f, args) in programs.items():
            jax.clear_caches()
            start = time.perf_counter()
            jax.jit(f).lower(*args).compile()
            samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in samples.items()}


def _programs(options: argparse.Namespace) -> dict[str, dict[str, Program]]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import jaxmgrit as jm
    from experiments.networks.blocks import normal, transformer_block, transformer_parameters
    from experiments.timing.sequential import propagations

    random, h = np.random.default_rng(0), (2 * options.layers) ** -0.5
    step, theta = transformer_block(heads=4), transformer_parameters(random, options.layers, options.width)
    u0 = normal(random, 8, 16, options.width)
    cycles = jm.MGRIT(options.factor, levels=2, cycles=2)
    picard = jm.picard(2)
    scans = propagations(step, h, options.layers)

    def gradient(f: Callable[..., PyTree]) -> Program:
        return jax.value_and_grad(lambda theta, u0: jnp.mean(f(theta, u0) ** 2), argnums=(0, 1)), (theta, u0)

    def propagated(**given: Any) -> Program:
        return gradient(lambda theta, u0: jm.propagate(step, theta, u0, h=h, **given))

    problem = jm.Problem(
        opening=lambda p, x: x @ p,
        step=step,
        loss=lambda p, u, y: (jnp.mean((u @ p - y) ** 2), None),
        h=h,
    )
    params = jm.Params(jnp.eye(options.width), theta, jnp.eye(options.width))
    optimizer, batch = optax.adam(1e-3), (u0, u0)

    def conventional(params: jm.Params, state: PyTree, batch: PyTree) -> PyTree:
        def loss(params: jm.Params) -> jax.Array:
            x, y = batch
            u = scans["checkpointed"](params.layers, problem.opening(params.opening, x))
            return problem.loss(params.closing, u, y)[0]

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    def one_shot(schedule: Any, **options_of_solver: Any) -> Program:
        solver = jm.MGRIT(options.factor, levels=2, **options_of_solver)
        trainer = jm.OneShot(problem, optimizer, solver, solver, schedule)
        return trainer.step, (trainer.init(params, batch), batch)

    return {
        GRADIENTS: {
            REFERENCES[GRADIENTS]: gradient(scans["checkpointed"]),
            "plain scan": gradient(scans["plain"]),
            "propagate": propagated(),
            f"propagate, MGRIT({options.factor}, levels=2)": propagated(solver=cycles, adjoint=cycles),
        },
        STEPS: {
            REFERENCES[STEPS]: (conventional, (params, optimizer.init(params), batch)),
            "one-shot, predict then sweep, average": one_shot(
                jm.PredictThenSweep(), coarse_params=jm.average, coarse_step=jm.midpoint
            ),
            "one-shot, predict then sweep, picard(2)": one_shot(
                jm.PredictThenSweep(), coarse_params=jm.all_layers, coarse_step=picard
            ),
            "one-shot, cycles then gradient": one_shot(jm.CyclesThenGradient(), cycles=2),
        },
    }


if __name__ == "__main__":
    terminal.run(main)
