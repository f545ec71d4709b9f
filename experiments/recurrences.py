"""Gradients of a recurrence's shared weights by Newton and by backpropagation: `python -m experiments.recurrences`.

A random GRU over N steps: the best of plain, checkpointed, unrolled and segmented scans, against a sequential state
with Newton's adjoint and against Newton for both, in turns, float32, on one core. The table gives times relative to
the best backpropagation, below 1 where Newton is faster, and how far the gradient is from that of the plain scan.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from experiments.config.arguments import above, at_least, output_file
from experiments.foundation.files import write_output
from experiments.runs import terminal
from experiments.timing import turns

PyTree = Any

# Components of the state and samples.
SIZES = ((4, 1), (8, 1), (8, 8))


def main(words: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = _parse(words)
    where = turns.pin()  # before JAX starts its threads
    import jax

    import jaxmgrit as jm

    print(f"jaxmgrit {jm.__version__}, jax {jax.__version__}, {jax.default_backend()}, float32, {where}")
    print(f"GRU, N = {options.layers}, gradient of the shared weights, {options.factor} layers an interval")
    print(f"{'width':>5} {'batch':>5} {'best':>13} {'ms':>7} {'sequential + adjoint':>20} {'Newton':>7} {'off by':>8}")
    rows = []
    for width, batch in options.sizes:
        row = measured(options.layers, width, batch, options.factor, options.seconds)
        rows.append({"width": width, "batch": batch, **row})
        print(
            f"{width:5} {batch:5} {row['best']:>13} {row['best_ms']:7.2f} {row['prefix']:20.2f} {row['newton']:7.2f} "
            f"{row['off']:8.1e}",
            flush=True,
        )
    if options.output:
        record = {"jax": jax.__version__, "where": where, "layers": options.layers, "factor": options.factor}
        write_output(options.output, json.dumps({**record, "rows": rows}, indent=1) + "\n")
    return 0


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m experiments.recurrences", description=__doc__)
    parser.add_argument("--layers", type=at_least(2), default=4096, metavar="N", help="steps of the recurrence")
    parser.add_argument("--factor", type=at_least(2), default=32, metavar="M", help="steps per interval")
    parser.add_argument("--sizes", type=_size, nargs="+", default=SIZES, metavar="D:B", help="components:samples")
    parser.add_argument("--seconds", type=above(0), default=10.0, help="about how long a row's calls take together")
    parser.add_argument("--output", type=output_file, metavar="FILE", help="write the rows as JSON")
    return parser.parse_args(words)


def _size(word: str) -> tuple[int, int]:
    numbers = re.fullmatch(r"([1-9][0-9]{0,5}):([1-9][0-9]{0,5})", word)
    if not numbers:
        raise argparse.ArgumentTypeError(f"expected components:samples, such as 4:16, not {word!r}")
    return int(numbers[1]), int(numbers[2])


def measured(layers: int, width: int, batch: int, factor: int, seconds: float) -> dict[str, Any]:
    """One row of the table.

    Args:
        layers: N.
        width: components of the state.
        batch: samples.
        factor: steps per interval.
        seconds: about how long all calls may take together.
    """
    import jax.numpy as jnp
    import numpy as np

    import jaxmgrit as jm
    from experiments.networks.blocks import gru_weights, normal
    from experiments.timing.sequential import propagations
    from experiments.zoo.gradients import distance

    random = np.random.default_rng(0)
    args = gru_weights(random, width, width), normal(random, layers, batch, width)
    u0 = jnp.zeros((batch, width), jnp.float32)
    newton = jm.Newton(factor)

    def scanned(name: str) -> Callable[..., PyTree]:
        return _gradient(lambda step, x: propagations(step, 1.0, layers)[name](x, u0))

    def by(solver: Any) -> Callable[..., PyTree]:
        return _gradient(lambda step, x: jm.propagate(step, x, u0, h=1.0, solver=solver, adjoint=newton))

    # For the names alone: this step is never called.
    programs = {name: scanned(name) for name in propagations(lambda x, u, h: u, 1.0, layers)}
    timed = turns.in_turns({**programs, "prefix": by(jm.Sequential()), "newton": by(newton)}, args, seconds)
    best = min(programs, key=lambda name: timed[name].seconds)
    return {
        "best": best,
        "best_ms": 1e3 * timed[best].seconds,
        "off": max(distance(timed[name].value, timed["plain"].value) for name in ("prefix", "newton")),
        **{name: timed[name].seconds / timed[best].seconds for name in ("prefix", "newton")},
    }


def _gradient(run: Callable[..., Any]) -> Callable[..., PyTree]:
    """The gradient, with respect to the weights, of the sum of the squares of the final state."""
    import jax
    import jax.numpy as jnp

    from experiments.networks.blocks import gru_cell

    return jax.grad(lambda weights, x: jnp.sum(run(gru_cell(weights), x) ** 2))


if __name__ == "__main__":
    terminal.run(main)
