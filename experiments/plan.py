"""What more devices would bring, before they are there: `python -m experiments.plan CONFIG --devices 1 2 4 ... 1024`.

Measures one Phi, one pullback and one message of a config's network on this machine, counts what an iteration does on
P devices (`jaxmgrit.analysis.cost_model`), and prints the time of an iteration, speed-up and efficiency over the
sequential gradient, the break-even number of devices, the best coarsening factor and number of levels for each P, and
what pipeline parallelism, P M / (M + P - 1) for M micro-batches, would bring beside it. Messages between devices of
this machine are measured with two of them; another network's are given by `--latency` and `--bandwidth`. A hierarchy is
named the best only if its gradient, in the second iteration at the same parameters, is within `--tolerance` of the
exact one. Then follows what `jm.advise` says of the network.

`python -m experiments.plan MODULE:FUNCTION` asks `jm.advise` about a network of your own: FUNCTION() returns
(step, theta, u0, h).
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxmgrit as jm
from experiments import problems
from experiments.config.arguments import Parser, above, at_least
from experiments.config.reader import read
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.problems.data import cast
from experiments.runs import terminal
from experiments.timing import own_function
from experiments.timing.calibrated import Calibration
from experiments.timing.calibration import Network, coarse_steps, messages, sequential, three
from experiments.timing.devices import Devices, last_cores
from experiments.timing.workers import Worker, WorkerError
from experiments.training import build
from jaxmgrit.solvers.mgrit.grids import sweep_batch

FACTORS = (4, 8, 16, 32, 64, 128, 256)
POWERS, ADVISED = [2**k for k in range(11)], (1, 2, 4, 8, 16, 64)
INTERVAL = 32  # layers of the intervals in which the times are measured


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        options, rest = _parser().split(sys.argv[1:] if arguments is None else arguments)
        if rest and own_function.is_function(rest[0]):
            if rest[1:]:
                raise ConfigError(f"{' '.join(rest[1:])}: unexpected, since {rest[0]} is a function and no config.")
            print(f"asking jm.advise about {rest[0]}, for {options.seconds:g} s at most ...", file=sys.stderr)
            print(own_function.advice(rest[0], **_asked(options)))
            return 0
        config = read(rest, "experiments.plan")
        if config.training.method == "sequential":
            raise ConfigError("training.method = 'sequential': expected one_shot, as there is nothing else to plan.")
        report(config, options)
    except (ConfigError, WorkerError) as error:
        print("plan:", *str(error).splitlines(), sep="\n  ", file=sys.stderr)
        return 2
    return 0


def _parser() -> Parser:
    parser = Parser("python -m experiments.plan", "%(prog)s CONFIG|MODULE:FUNCTION [--devices P ...] [--key VALUE ...]")
    parser.add_argument("--devices", type=at_least(1), nargs="+", default=POWERS, metavar="P", help="to plan for")
    parser.add_argument("--micro-batches", type=at_least(1), default=8, metavar="M", help="of the pipeline")
    parser.add_argument("--tolerance", type=above(0), default=0.05, help="relative error of the gradient that is borne")
    parser.add_argument("--seconds", type=above(0), default=60.0, metavar="T", help="the advice may take")
    parser.add_argument("--latency", type=above(0), default=None, metavar="S", help="seconds per message")
    parser.add_argument("--bandwidth", type=above(0), default=None, metavar="B", help="bytes per second")
    return parser


def measure(memory: Any, config: Config) -> Calibration:
    """Task of a worker with one device: measure the config's network."""
    build.prepare_jax(config)
    own = network(config)
    state = jax.eval_shape(lambda: own.u0)
    share = config.network.layers // INTERVAL or 1
    most = sweep_batch(jm.MGRIT(INTERVAL), state, jax.default_backend(), share)
    sizes = sorted({1, most, *(2**k for k in range(6) if 2**k < most)})
    swept = {batch: three(own, 1, INTERVAL, batch, Devices()) for batch in sizes}
    made = build.solver(config.solver)
    coarse = coarse_steps(own, made, min(INTERVAL, config.network.layers), Devices())
    factors = [m for m in FACTORS if made.coarse_params is jm.all_layers and 2 * m <= config.network.layers]
    kept = {m: coarse_steps(own, made, m, Devices()) for m in factors}
    return Calibration(swept, coarse, sequential(own, INTERVAL), (0.0, 0.0), own.sizes, state, kept)


def measure_messages(memory: Any, config: Config) -> tuple[float, float]:
    """Task of a worker with two devices: seconds per message and per byte."""
    jax.config.update("jax_enable_x64", config.dtype == "float64")
    return messages(network(config).u0, Devices(2))


def network(config: Config) -> Network:
    """A config's layers and the states they start from, of its first batch."""
    problem, params, (x, _) = _problem(config)
    return Network(problem.step, params.layers, problem.opening(params.opening, x), problem.h)


def _problem(config: Config) -> tuple[jm.Problem, jm.Params, tuple[jax.Array, jax.Array]]:
    """The problem, its initial parameters and the first batch."""
    data = problems.load(config.problem, config.seed)
    x, y = (part[: config.training.batch_size] for part in (data.train.x, data.train.y))
    batch = jnp.asarray(cast(x, config.dtype)), jnp.asarray(y)
    return build.problem(config), build.initial_params(config, data), batch


def gradient_error(memory: Any, config: Config, solver: jm.MGRIT) -> float:
    """Task of a worker: how far off the gradient is in the second iteration at the same parameters, relatively.

    The first starts cold; infinite where the solver does not fit the schedule.
    """
    build.prepare_jax(config)
    problem, params, batch = _problem(config)
    # The parameters stay, so that the second iteration is at the same ones.
    trainer = jm.OneShot(problem, optax.set_to_zero(), solver, solver, build.SCHEDULES[config.training.schedule])
    try:
        state, _ = jax.jit(trainer.step)(trainer.init(params, batch), batch)
        return float(jax.jit(partial(jm.compare, trainer))(state, batch).distance)
    except (TypeError, ValueError):
        return float("inf")


def advised(memory: Any, config: Config, asked: dict[str, Any]) -> str:
    """Task of a worker with one device: what `jm.advise` says of the config's network and loss."""
    build.prepare_jax(config)
    problem, params, (x, y) = _problem(config)

    def loss(u: jax.Array) -> jax.Array:
        return problem.loss(params.closing, u, y)[0]

    u0 = problem.opening(params.opening, x)
    return str(jm.advise(problem.step, params.layers, u0, h=problem.h, loss=loss, **asked))


def _asked(options: argparse.Namespace, message: tuple[float, float] | None = None) -> dict[str, Any]:
    """The options of `jm.advise`, with a network's speed where it is known."""
    # The advice has a column for each, of which fewer fit on a screen.
    devices = ADVISED if options.devices is POWERS else options.devices
    asked = {"devices": tuple(devices), "tolerance": options.tolerance, "seconds": options.seconds}
    latency, byte = message or (options.latency, 1 / options.bandwidth if options.bandwidth else None)
    return asked | ({"latency": latency} if latency else {}) | ({"bandwidth": 1 / byte} if byte else {})


def calibrated(config: Config, latency: float | None, bandwidth: float | None) -> Calibration:
    """Measure the config's network on one core, and messages between two."""
    one, two = (Worker(Devices(count, cores=last_cores(count))) for count in (1, 2))
    try:
        print("measuring one Phi, its pullbacks and the sequential gradient ...", flush=True)
        measured: Calibration = one.ask(measure, config)
        if latency is None or bandwidth is None:
            print("measuring messages between two devices ...", flush=True)
            measured = replace(measured, message=two.ask(measure_messages, config))
    finally:
        one.close()
        two.close()
    message = latency or measured.message[0], 1 / bandwidth if bandwidth else measured.message[1]
    return replace(measured, message=message)


def hierarchies(config: Config) -> Iterator[tuple[str, jm.MGRIT]]:
    """Coarsening factors and numbers of levels to choose from, everything else as in the config."""
    base = build.solver(config.solver)
    for m in FACTORS:
        if 2 * m > config.network.layers:
            return
        yield f"m = {m}", replace(base, coarsening_factor=m, levels=2)
        for below in (4, 8):
            for levels in (3, 4):
                factors = (m, *[below] * (levels - 2))
                if config.network.layers // (m * below ** (levels - 2)) >= 2:
                    yield "m = " + ", ".join(map(str, factors)), replace(base, coarsening_factor=factors, levels=levels)


def best_within(
    known: Calibration, config: Config, devices: int, good: Callable[[jm.MGRIT], bool]
) -> tuple[float, str]:
    """Seconds and name of the fastest hierarchy that is good enough, no slower one being looked at; else (inf, "-")."""
    timed = [(_seconds(known.seconds, config, solver, devices), name, solver) for name, solver in hierarchies(config)]
    for seconds, name, solver in sorted(timed, key=lambda one: one[0]):
        if seconds < float("inf") and good(solver):
            return seconds, name
    return float("inf"), "-"


def report(config: Config, options: argparse.Namespace) -> None:
    """Measure and print the plan, then the advice."""
    known = calibrated(config, options.latency, options.bandwidth)
    one = Worker(Devices(cores=last_cores(1)))
    try:
        _report(known, config, options, lambda solver: one.ask(gradient_error, config, solver))
        print(f"\nasking jm.advise, for {options.seconds:g} s at most ...", flush=True)
        print(one.ask(advised, config, _asked(options, known.message)))
    finally:
        one.close()


def _report(
    known: Calibration, config: Config, options: argparse.Namespace, error: Callable[[jm.MGRIT], float]
) -> None:
    """Print the plan; hierarchies are named by their time only if `error` says that their gradient will do."""
    # A hierarchy may be asked for at many numbers of devices, and each answer compiles two programs.
    error = cache(error)
    phi, vjp, grad = known.swept[1]
    print(
        f"\n{config.network.layers} layers; one Phi {1e6 * phi:.2f} us, pullback {1e6 * vjp:.2f} us, with parameters "
        f"{1e6 * grad:.2f} us (one interval at a time);\nsequential gradient {1e3 * known.sequential:.2f} ms; message "
        f"{1e6 * known.message[0]:.1f} us + {1e9 * known.message[1]:.3f} ns/byte, a state has {known.sizes.state} bytes"
    )
    print(
        f"\n{'P':>5} {'ms':>9} {'speed-up':>9} {'efficiency':>10}   {'best hierarchy':20} {'ms':>9} {'speed-up':>9} "
        f"{f'pipeline, M = {options.micro_batches}':>18}"
    )
    own, faster = build.solver(config.solver), []
    cyclic: list[str] = []
    for devices in sorted(dict.fromkeys(options.devices)):
        mine = _seconds(known.seconds, config, own, devices)
        best = best_within(known, config, devices, lambda solver: error(solver) <= options.tolerance)
        if min(mine, best[0]) < known.sequential:
            faster.append(devices)
        dealt = _seconds(known.cyclic, config, own, devices)
        if dealt < float("inf"):
            cyclic.append(f"P = {devices}: {1e3 * dealt:.2f} ms ({known.sequential / dealt:.2f} x)")
        m = options.micro_batches
        print(
            f"{devices:5} {_ms(mine)} {_ratio(known.sequential, mine)} {_share(known.sequential, mine, devices)}   "
            f"{best[1]:20} {_ms(best[0])} {_ratio(known.sequential, best[0])} {devices * m / (m + devices - 1):18.2f}"
        )
    what = f"{faster[0]} of these" if faster else "none of these numbers of devices"
    if (off := error(own)) > options.tolerance:
        print(f"\nthe config's own gradient is off by {off:.2g}, more than --tolerance {options.tolerance:g}")
    if cyclic:
        print("\nwere the layers dealt out to the devices in turn, which is modelled only:", "; ".join(cyclic))
    print(f"\nbreak-even with the sequential gradient on one core: {what}; '-' where a hierarchy has too few intervals")


def _seconds(model: Callable[[Config, jm.MGRIT, int], float], config: Config, solver: jm.MGRIT, devices: int) -> float:
    try:
        return model(config, solver, devices)
    except ValueError:  # no such hierarchy on so many devices
        return float("inf")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:9.2f}" if seconds < float("inf") else f"{'-':>9}"


def _ratio(reference: float, seconds: float) -> str:
    return f"{reference / seconds:9.2f}" if seconds < float("inf") else f"{'-':>9}"


def _share(reference: float, seconds: float, devices: int) -> str:
    return f"{reference / seconds / devices:10.0%}" if seconds < float("inf") else f"{'-':>10}"


if __name__ == "__main__":
    terminal.run(main)
