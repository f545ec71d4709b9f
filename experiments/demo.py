"""What layer-parallel training brings, in two minutes on this machine: `python -m experiments.demo [--folder F]`.

1024 layers of the level-set network. Times a training step by every way to write it, races sequential against one-shot
training on their own clocks, counts cycles as networks grow deeper, and models more devices from what was measured
here. Prints as it goes and leaves one picture and the numbers in a folder.
"""

import argparse
import datetime
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import problems
from experiments.config.arguments import above, at_least, path
from experiments.config.reader import read
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.foundation.files import make_folder, write_output
from experiments.runs import terminal
from experiments.timing.demo_picture import draw
from experiments.timing.devices import Devices, count_cores, last_cores
from experiments.timing.programs import time_program
from experiments.timing.workers import Worker, WorkerError

CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"
WIDTH, BATCH = 8, 500
TURNS = 7
RACE_SECONDS = 15.0  # for each program, on its own clock
CHUNK_SECONDS = 1.5
SEQUENTIAL = ("scan", "scan, layers rematerialised", "scan, segments, layers rematerialised", "jm.Sequential")
MODELLED = (4, 8, 16, 32, 64)
SCALES = 1.2  # on two free cores a step of one-shot takes about 0.6 of the time on one


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.demo", description=__doc__)
    parser.add_argument("--folder", type=path, default=None, metavar="F", help="for picture and numbers (new)")
    parser.add_argument("--layers", type=at_least(16), default=1024, metavar="N", help="of the network")
    parser.add_argument("--seconds", type=above(0), default=RACE_SECONDS, metavar="S", help="of the race, for each")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(f"runs/demo-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    try:
        make_folder(folder)
        result = run(options.layers, options.seconds)
    except (ConfigError, WorkerError) as error:
        print("demo:", *str(error).splitlines(), sep="\n  ", file=sys.stderr)
        return 2
    write_output(folder / "demo.json", json.dumps(result, indent=1) + "\n")
    draw(folder / "demo.png", result)
    print(f"\npicture and numbers: {folder}/demo.png, demo.json")
    return 0


def run(layers: int, seconds: float) -> dict[str, Any]:
    """The four parts, each printed when it is done."""
    begin, cores = time.perf_counter(), count_cores()
    print(f"{layers} layers u + h tanh(u W + b), width {WIDTH}, {BATCH} points, float32, {_cores(cores)}\n")
    workers = {count: Worker(Devices(count, False, last_cores(count))) for count in dict.fromkeys((1, cores))}
    try:
        steps = _steps(workers, layers)
        race = _race(workers, layers, seconds)
        devices = _devices(workers, layers, steps)
    finally:
        for worker in workers.values():
            worker.close()
    cycles = _cycles()
    print(f"\n{_when_not(steps, cores)}\n(all of it took {time.perf_counter() - begin:.0f} s)")
    return {"layers": layers, "cores": cores, "steps": steps, "race": race, "cycles": cycles, "devices": devices}


def _cores(count: int) -> str:
    return "1 core" if count == 1 else f"{count} cores"


def _factor(layers: int) -> int:  # layers per interval: as many as intervals
    return int(2 ** round(math.log2(layers) / 2))


def _case(layers: int) -> Any:
    from experiments.timing.contenders import Case

    return Case(layers, WIDTH, BATCH, "float32", _factor(layers))


def _steps(workers: dict[int, Worker], layers: int) -> dict[str, float]:
    """Milliseconds of a training step: the best sequential program, one-shot, and the batch split over the cores."""
    one_shot = f"predict, then sweep, 2 levels, m = {_factor(layers)}"
    most = max(workers)
    kinds = {
        "best sequential": [(workers[1], name) for name in SEQUENTIAL],
        f"one-shot, {_cores(1)}": [(workers[1], one_shot)],
    }
    if most > 1:
        kinds[f"one-shot, {most} cores"] = [(workers[most], one_shot)]
        kinds[f"batch split, {most} cores"] = [(workers[most], "scan, segments, layers rematerialised, batch split")]
    samples: dict[str, dict[str, list[float]]] = {kind: {name: [] for _, name in ways} for kind, ways in kinds.items()}
    for ways in kinds.values():
        for worker, name in ways:
            _say(f"compiling {name}")
            worker.ask(_compile, name, layers)
    for turn in range(TURNS):
        _say(f"timing, turn {turn + 1} of {TURNS}")
        for kind, ways in kinds.items():
            for worker, name in ways:
                samples[kind][name].append(worker.ask(time_program, name))
    _say("")
    medians = {kind: 1e3 * min(statistics.median(times) for times in ways.values()) for kind, ways in samples.items()}
    print("one training step (medians, in turns)")
    for kind, value in medians.items():
        bar = "#" * max(1, round(40 * value / max(medians.values())))
        print(f"  {kind:22} {value:7.2f} ms  {bar}  {medians['best sequential'] / value:.2f} x")
    return medians


def _compile(memory: dict[str, Any], name: str, layers: int) -> Any:
    """Task of a worker: make a contender by its name."""
    import jax

    from experiments.timing.contenders import contenders
    from experiments.timing.programs import compile_program

    devices = Devices(jax.device_count())
    contender = next(c for c in contenders(_case(layers), ("width_first",), devices) if c.name == name)
    return compile_program(memory, name, contender.build)


def _race(workers: dict[int, Worker], layers: int, seconds: float) -> dict[str, list[tuple[float, float]]]:
    """Exact validation accuracy over each one's own seconds, in turns so that both meet the same machine."""
    most = max(workers)
    racers = {
        "sequential, 1 core": (workers[1], "sequential"),
        f"one-shot, {_cores(most)}": (workers[most], "one_shot"),
    }
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, (worker, method) in racers.items():
        _say(f"compiling {name}")
        curves[name] = [(0.0, worker.ask(_enter_race, name, method, layers))]
    _say("")
    print("\nthe race: exact validation accuracy over each one's own seconds of training")
    while any(curve[-1][0] < seconds for curve in curves.values()):
        for name, (worker, _) in racers.items():
            if curves[name][-1][0] < seconds:
                spent, accuracy = worker.ask(_go_on, name, CHUNK_SECONDS)
                curves[name].append((curves[name][-1][0] + spent, accuracy))
        _say("   ".join(f"{name}: {c[-1][0]:4.1f} s {100 * c[-1][1]:5.1f} %" for name, c in curves.items()))
    _say("")
    for name, curve in curves.items():
        marks = "   ".join(f"{100 * a:4.1f} % at {t:4.1f} s" for t, a in curve[1 :: max(1, len(curve) // 4)])
        print(f"  {name:22} {marks}")
    return curves


def _config(method: str, layers: int) -> Config:
    import jax

    devices = jax.device_count()
    words = [str(CONFIG), "--training.method", method, "--network.layers", str(layers)]
    if method == "sequential":
        words += ["--optimizer.anticipate", "0"]  # exact gradients have no lag
    else:
        words += ["--solver.coarsening-factor", str(_factor(layers))]
    words += ["--backend.kind", "mesh", "--backend.devices", str(devices)] if devices > 1 else []
    return read(words, "experiments.demo")


def _enter_race(memory: dict[str, Any], name: str, method: str, layers: int) -> float:
    """Task of a worker: make a trainer, compile its step, and return the accuracy it starts from."""
    import copy

    import jax

    from experiments.training import build, programs
    from experiments.training.batches import Batches
    from experiments.training.evaluation import evaluator

    config = _config(method, layers)
    build.prepare_jax(config)
    data = problems.load(config.problem, config.seed)
    trainer, batches = build.trainer(config), Batches(config, data)
    state = build.initial_state(config, data, trainer, batches)
    update = programs.update(trainer, batches)
    accuracy = evaluator(trainer.problem, trainer.evaluate, data.validation, config.dtype)
    jax.block_until_ready(update(copy.deepcopy(state), batches.at(0)))  # compiles; a copy, as updates use up a state
    memory[f"race {name}"] = [update, batches, accuracy, state, 0]
    return float(accuracy(state)[1])


def _go_on(memory: dict[str, Any], name: str, seconds: float) -> tuple[float, float]:
    """Task of a worker: train for about so many seconds; returns those it took, and the exact accuracy reached."""
    import jax

    update, batches, accuracy, state, done = memory[f"race {name}"]
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(5):  # to wait for the device after each would slow it down
            state, _ = update(state, batches.at(done))
            done += 1
        jax.block_until_ready(state)
    spent = time.perf_counter() - start
    memory[f"race {name}"] = [update, batches, accuracy, state, done]
    return spent, float(accuracy(state)[1])


def _devices(workers: dict[int, Worker], layers: int, steps: dict[str, float]) -> dict[int, float]:
    """Speed-up over the best sequential program on more devices: counted, with costs and steps measured here."""
    _say("measuring one layer and one message")
    factors = {n: max(2, min(_factor(layers), layers // n)) for n in MODELLED if 2 * n <= layers}
    most, own = max(workers), _factor(layers)
    costs = {m: workers[most].ask(_calibrate, layers, m) for m in sorted({own, *factors.values()})}
    of_most = _modelled(layers, most, own, costs[own]) / steps[f"one-shot, {_cores(most)}"]
    gains = {n: steps["best sequential"] * of_most / _modelled(layers, n, m, costs[m]) for n, m in factors.items()}
    _say("")
    messages = "messages between this machine's devices" if most > 1 else "no time for messages (here is one core)"
    print(f"\nmodelled from these times and {messages}, not measured")
    print("  " + "   ".join(f"P = {count}: {value:.1f} x" for count, value in gains.items()))
    return gains


def _solver(factor: int) -> Any:
    import jaxmgrit as jm

    return jm.MGRIT(factor, levels=2, cycles=1, coarse_params=jm.average, coarse_step=jm.midpoint)


def _calibrate(memory: dict[str, Any], layers: int, factor: int) -> Any:
    """Task of a worker: what one Phi, one pullback and one message cost."""
    import jax
    import numpy as np

    from experiments.timing.calibration import calibrate
    from jaxmgrit.solvers.mgrit.grids import sweep_batch

    state = np.zeros((BATCH, WIDTH), "float32")
    batch = sweep_batch(_solver(factor), state, "cpu", layers // factor)
    return calibrate(memory, _case(layers), "width_first", Devices(jax.device_count()), _solver(factor), factor, batch)


def _modelled(layers: int, count: int, factor: int, costs: Any) -> float:
    import jaxmgrit as jm
    from jaxmgrit.analysis.cost_model import Sizes, iteration_counts

    sizes = Sizes(BATCH * WIDTH * 4, (WIDTH + 1) * WIDTH * 4, 4)
    solver = _solver(factor)
    parts = iteration_counts(jm.PredictThenSweep(), layers, solver, solver, count, sizes)
    return float(sum(costs.seconds(part) for part in parts))


def _cycles() -> dict[int, int]:
    """Cycles to 1e-8 of the first residual for ever deeper networks that sample one smooth theta(t)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jaxmgrit as jm
    from experiments.networks.smooth import smooth_layers, tanh_step

    cycles = {}
    with jax.enable_x64(True):
        for layers in (64, 512, 4096):
            _say(f"cycles of {layers} layers")
            u0 = jnp.asarray(np.random.default_rng(1).normal(size=(4, WIDTH)))
            solver = jm.MGRIT(4, cf_relaxations=(1, 1), cycles=12, rtol=1e-8)
            sol = jm.solve(tanh_step(), smooth_layers(layers, WIDTH), u0, h=1.0 / layers, solver=solver)
            cycles[layers] = int(sol.cycles)
    _say("")
    print("\ncycles to 1e-8 of the first residual, all levels, m = 4, FCF")
    print("  " + "   ".join(f"N = {layers}: {count}" for layers, count in cycles.items()))
    return cycles


def _when_not(steps: dict[str, float], cores: int) -> str:
    """When it does not help, with what was measured here."""
    limits = ""
    if cores > 1:
        mine, split = steps[f"one-shot, {cores} cores"], steps[f"batch split, {cores} cores"]
        limits += f" Here, with {BATCH} points, it takes {split / mine:.2f} of one-shot's time." * (split < mine)
        if (gain := steps[f"one-shot, {_cores(1)}"] / mine) < SCALES:
            limits += f" On {cores} cores one-shot's step is {gain:.2f} x as fast as on one: they are busy, or shared."
    return (
        "When it does not help: with large batches of cheap layers splitting the batch over devices is as fast and "
        f"exact.{limits} Few or wide layers leave a device busy by themselves: python -m experiments.plan CONFIG tells."
    )


def _say(text: str) -> None:
    """What goes on, on one line of a terminal that the next one takes the place of."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{text}", end="", flush=True)


if __name__ == "__main__":
    terminal.run(main)
