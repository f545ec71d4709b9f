"""How fast cycles converge on rough layers, by coarse step: `python -m experiments.contraction [NETWORK ...]`.

Networks of independent layers, at their initialisation and after sequential training by Adam (5 % warm-up, cosine to
5 %): tanh layers (level sets), the same in 8 intervals, an MLP with layer norm (scikit-learn's digits) and a pre-norm
transformer (characters). For every coarse step the factor by which a two-level cycle reduces the residual norm of the
state and of the adjoint, in the library's own `solve` and `adjoint_solve` from a cold start, in double precision: of
the tanh layers in the second cycle, of the MLP in the first, of the transformer's state in the first and of its adjoint
in the second. Beside the median over seeds stand the figures of a study of such networks, ours over these, and for
Picard sweeps the law of independent layers with the norms of the layers' derivatives as they are. Exit code 0: done; 2:
the arguments cannot be used.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmgrit as jm
from experiments.config.arguments import Parser, at_least, output_file
from experiments.errors import ConfigError
from experiments.foundation.files import write_output
from experiments.rough.contraction import law, residuals
from experiments.rough.subjects import Batch, Subject, eight_intervals, mlp, tanh_layers, transformer
from experiments.runs import terminal
from jaxmgrit.solvers.mgrit.coarse import Picard

PyTree = Any
COARSE: dict[str, dict[str, Any]] = {
    "injection": {},
    "average": {"coarse_params": jm.average},
    **{f"picard({p})": {"coarse_params": jm.all_layers, "coarse_step": jm.picard(p)} for p in (0, 1, 2, 3)},
}
MAKERS: dict[str, Callable[[int | None, str | None], Subject]] = {
    "tanh": tanh_layers,
    "eight": eight_intervals,
    "mlp": mlp,
    "transformer": transformer,
}


class Factors(NamedTuple):
    """By how much a cycle reduces residuals.

    Attributes:
        state: of the state.
        adjoint: of the adjoint.
        law: what the law of independent layers says; NaN where it says nothing.
    """

    state: float
    adjoint: float
    law: float


# By "at init" or "trained", then by coarse step.
Rows = dict[str, dict[str, Factors]]


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = Parser("python -m experiments.contraction", description=__doc__ and __doc__.partition("\n\n")[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"{', '.join(MAKERS)}; all by default")
    parser.add_argument("--iterations", type=at_least(0), metavar="I", help="of training")
    parser.add_argument("--layers", type=at_least(8), metavar="N", help="layers of every network")
    parser.add_argument(
        "--seeds", type=at_least(0), nargs="+", default=[0, 1, 2, 3, 4], metavar="SEED", help="medians of these"
    )
    parser.add_argument("--text", metavar="FILE", help="of characters; by default the library's own source")
    parser.add_argument("--output", type=output_file, metavar="FILE", help="write the figures as JSON")
    try:
        options = parser.parse_args(sys.argv[1:] if words is None else words)
        if unknown := [name for name in options.networks if name not in MAKERS]:
            raise ConfigError(f"{unknown[0]}: expected {', '.join(MAKERS)}")
        jax.config.update("jax_enable_x64", True)  # the second cycle of a good coarse step is below float32's rounding
        made = {name: MAKERS[name](options.layers, options.text) for name in options.networks or MAKERS}
    except ConfigError as error:
        print(f"argument error:\n  {error}", file=sys.stderr)
        return 2
    rows = {}
    for name, subject in made.items():
        iterations = subject.iterations if options.iterations is None else options.iterations
        rows[name] = medians(subject, options.seeds, iterations)
        print("\n".join(table(name, rows[name], subject.study)), flush=True)
    if options.output:
        write_output(options.output, json.dumps(_plain(rows), indent=1) + "\n")
    return 0


def medians(subject: Subject, seeds: Sequence[int], iterations: int) -> Rows:
    """The reductions for every coarse step, the medians over seeds of parameters and batches."""
    train = trainer(subject, iterations)
    starts = [subject.draw(np.random.default_rng(seed)) for seed in seeds]
    keys = [jax.random.split(jax.random.key(seed)) for seed in seeds]
    moments = {"at init": starts}
    if iterations:
        moments["trained"] = [train(params, key) for params, (key, _) in zip(starts, keys, strict=True)]
    batches = [subject.batch(key) for _, key in keys]
    rows: Rows = {when: {} for when in moments}
    for name, coarse in COARSE.items():
        measure = measurement(subject, jm.MGRIT(subject.factor, levels=2, cycles=max(subject.cycles) + 1, **coarse))
        for when, params in moments.items():
            measured = [measure(*pair) for pair in zip(params, batches, strict=True)]
            rows[when][name] = Factors(*(float(x) for x in np.median(np.asarray(measured), axis=0)))
    return rows


def measurement(subject: Subject, solver: jm.MGRIT) -> Callable[[jm.Params, Batch], tuple[jax.Array, ...]]:
    """(parameters, batch) -> the entries of `Factors`."""

    @jax.jit
    def measure(params: jm.Params, batch: Batch) -> tuple[jax.Array, ...]:
        (x, y), h = batch, subject.h
        u0 = subject.opening(params.opening, x)
        *norms, exact = residuals(
            subject.step, params.layers, u0, lambda u: subject.loss(params.closing, u, y), h, solver
        )
        reduced = [x[i] / x[i - 1] for x, i in zip(norms, subject.cycles, strict=True)]
        says = jnp.asarray(jnp.nan)
        if isinstance(solver.coarse_step, Picard):
            states = jm.trajectory(subject.step, params.layers, exact, h=h)
            intervals = -(-subject.layers // subject.factor)
            says = law(subject.step, params.layers, states, h, solver.coarse_step.sweeps, intervals).independent
        return *reduced, says

    return measure


def trainer(subject: Subject, iterations: int) -> Callable[[jm.Params, jax.Array], jm.Params]:
    """(parameters, key of the batches) -> the parameters after sequential training."""
    warm_up = round(0.05 * iterations)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, subject.rate, warm_up, max(iterations, warm_up + 1), 0.05 * subject.rate
    )
    optimizer = optax.adam(rate)

    def objective(params: jm.Params, batch: Batch) -> jax.Array:
        def one(u: jax.Array, theta: PyTree) -> tuple[jax.Array, None]:
            return subject.step(theta, u, subject.h), None

        x, y = batch
        final = jax.lax.scan(one, subject.opening(params.opening, x), params.layers)[0]
        return subject.loss(params.closing, final, y)

    @jax.jit
    def train(params: jm.Params, key: jax.Array) -> jm.Params:
        def one(carry: PyTree, key: jax.Array) -> tuple[PyTree, None]:
            params, state = carry
            updates, state = optimizer.update(jax.grad(objective)(params, subject.batch(key)), state, params)
            return (optax.apply_updates(params, updates), state), None

        start = params, optimizer.init(params)
        after: jm.Params = jax.lax.scan(one, start, jax.random.split(key, iterations))[0][0]
        return after

    return train


def table(name: str, rows: Rows, study: dict[str, dict[str, tuple[float, float]]]) -> list[str]:
    """One line per coarse step, for each time: ours, the study's, ours over the study's, the law."""
    lines = []
    for when, factors in rows.items():
        lines += [f"\n{name}, {when}", f"{'':12}{'state':>9}{'adjoint':>9}{'study':>18}{'over it':>14}{'law':>9}"]
        for coarse, own in factors.items():
            known = study.get(when, {}).get(coarse, (np.nan, np.nan))
            over = own.state / known[0], own.adjoint / known[1]
            numbers = [f"{x:9.2g}" for x in (own.state, own.adjoint, *known)] + [f"{x:7.2f}" for x in over]
            lines.append(f"{coarse:12}{''.join(numbers)}{own.law:9.2g}".replace("nan", "  -"))
    return lines


def _plain(rows: dict[str, Rows]) -> Any:
    """As JSON has them: a law where there is one."""

    def entry(factors: Factors) -> dict[str, float]:
        return {name: x for name, x in factors._asdict().items() if not np.isnan(x)}

    return {
        name: {when: {coarse: entry(x) for coarse, x in own.items()} for when, own in row.items()}
        for name, row in rows.items()
    }


if __name__ == "__main__":
    terminal.run(main)
