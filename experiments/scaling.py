"""Scaling over devices as it is usually drawn: `python -m experiments.scaling CONFIG [--folder F] [--key VALUE ...]`.

Strong: the config's network on more and more devices. Weak: four intervals of layers per device, all of the same step.
One iteration is measured on as many devices as the machine has cores for (each a core), and modelled beyond as in
`experiments.plan`; splitting the batch instead is predicted beside it: the gradient of a device's share is measured,
the all-reduce modelled. The picture says what is measured and what is not.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import plan, problems
from experiments.config.arguments import Parser, path
from experiments.config.reader import read
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.foundation.files import make_folder, write_output
from experiments.pictures.scaling import draw
from experiments.processes.launchers import refuse_several
from experiments.runs import terminal
from experiments.timing import calibrated
from experiments.timing.calibration import sequential
from experiments.timing.devices import Devices, count_cores, last_cores
from experiments.timing.workers import Worker, WorkerError
from experiments.training import build, programs
from experiments.training.batches import Batches

REPEATS = 9
INTERVALS = 4  # per device, in weak scaling


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = Parser("python -m experiments.scaling", "%(prog)s CONFIG [--folder F] [--key VALUE ...]")
    parser.add_argument("--folder", type=path, default=Path("runs/scaling"), help="for figures and picture")
    try:
        options, rest = parser.split(sys.argv[1:] if arguments is None else arguments)
        refuse_several("experiments.scaling")
        config = read(rest, "experiments.scaling")
        if config.training.method == "sequential":
            raise ConfigError("training.method = 'sequential': expected one_shot, which is what can be scaled.")
        make_folder(options.folder)
        result = scale(config)
        write_output(options.folder / "scaling.json", json.dumps(result, indent=1) + "\n")
        draw(result, options.folder / "scaling.png")
    except (ConfigError, WorkerError) as error:
        print("scaling:", *str(error).splitlines(), sep="\n  ", file=sys.stderr)
        return 2
    return 0


def with_layers(config: Config, layers: int, devices: int) -> Config:
    """The config for another number of layers and devices, with the same step size."""
    network = config.network
    total = network.final_time * layers / network.layers
    return config.model_copy(
        update={
            "network": network.model_copy(update={"layers": layers, "final_time": total}),
            "backend": config.backend.model_copy(
                update={"kind": "local" if devices == 1 else "mesh", "devices": devices}
            ),
        }
    )


def iteration(memory: Any, config: Config) -> float:
    """Task of a worker: median seconds of an iteration of training."""
    build.prepare_jax(config)
    data = problems.load(config.problem, config.seed)
    trainer, batches = build.trainer(config), Batches(config, data)
    state, update = build.initial_state(config, data, trainer, batches), programs.update(trainer, batches)
    batch, seconds = batches.at(0), []
    for _ in range(2 + REPEATS):
        start = time.perf_counter()
        state, _ = update(state, batch)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
    # Without the first two: at least one of them compiles.
    return statistics.median(seconds[2:])


def shares(config: Config, counts: Sequence[int]) -> dict[int, float]:
    """Seconds of the sequential gradient of one device's share of the batch on one core, by devices."""
    one = Worker(Devices(cores=last_cores(1)))
    try:
        return {devices: one.ask(share, config, devices) for devices in counts}
    finally:
        one.close()


def share(memory: Any, config: Config, devices: int) -> float:
    """Task of a worker with one device: such seconds."""
    build.prepare_jax(config)
    points = config.training.batch_size or len(problems.load(config.problem, config.seed).train.y)
    part = config.training.model_copy(update={"batch_size": max(1, points // devices)})
    return sequential(plan.network(config.model_copy(update={"training": part})), plan.INTERVAL)


def split(known: calibrated.Calibration, layers: int, devices: int, alone: float) -> float:
    """Predicted seconds of a gradient with the batch split: a share's, and the all-reduce of the layers' gradients.

    Args:
        known: What was measured.
        layers: N, whose parameters are summed.
        devices: Among which the batch is split.
        alone: Seconds of one device's share.
    """
    message, byte = known.message
    # Up and down a tree; of a long message, which is cut to pieces, every byte passes each device twice.
    return alone + (devices > 1) * 2 * (math.ceil(math.log2(devices)) * message + byte * layers * known.sizes.layer)


def scale(config: Config) -> dict[str, Any]:
    """Milliseconds of an iteration, measured and modelled, by devices: strong and weak."""
    cores = count_cores()
    solver = build.solver(config.solver)
    factor, layers = solver.factor(0), config.network.layers
    assert factor is not None
    known = plan.calibrated(config, None, None)
    result: dict[str, Any] = {"layers": layers, "factor": factor, "sequential": 1e3 * known.sequential}
    counts = [2**k for k in range((-(-layers // factor)).bit_length())]
    alone = shares(config, counts)
    for kind in ("strong", "weak"):
        rows = []
        for devices in counts:
            own = with_layers(config, layers if kind == "strong" else INTERVALS * factor * devices, devices)
            row: dict[str, Any] = {"devices": devices, "layers": own.network.layers, "modelled": None, "measured": None}
            try:
                row["modelled"] = 1e3 * known.seconds(own, solver, devices)
            except ValueError:  # too few layers for two levels
                pass
            if kind == "strong":
                # Relative to the whole batch's, measured just before: the machine may have been busier earlier.
                part = known.sequential * alone[devices] / alone[1]
                row["data_parallel"] = 1e3 * split(known, layers, devices, part)
            if devices <= cores:
                # The number of CPU devices is fixed in a process that has computed, so each needs its own.
                worker = Worker(Devices(devices, cores=last_cores(devices)))
                try:
                    row["measured"] = 1e3 * worker.ask(iteration, own)
                finally:
                    worker.close()
            rows.append(row)
            print(kind, *(f"{key} {_show(value)}" for key, value in row.items()), sep="  ", flush=True)
        result[kind] = rows
    return result


def _show(value: Any) -> str:
    return "-" if value is None else f"{value:.2f} ms" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    terminal.run(main)
