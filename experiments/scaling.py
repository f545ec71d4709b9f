"""Scaling over devices as it is usually drawn: `python -m experiments.scaling CONFIG [--folder F] [--key VALUE ...]`.

Strong: the config's network on more and more devices. Weak: four intervals of layers per device, all of the same step.
One iteration is measured on as many devices as the machine has cores for (each a core), and modelled beyond as in
`experiments.plan`; the picture draws the two differently, and says which is which.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import plan, problems
from experiments.config.arguments import Parser
from experiments.config.reader import read
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.foundation.files import make_folder
from experiments.runs import terminal
from experiments.timing.devices import Devices, count_cores, last_cores
from experiments.timing.workers import Worker, WorkerError
from experiments.training import build, programs
from experiments.training.batches import Batches

REPEATS = 9
INTERVALS = 4  # per device, in weak scaling


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = Parser("python -m experiments.scaling", "%(prog)s CONFIG [--folder F] [--key VALUE ...]")
    parser.add_argument("--folder", type=Path, default=Path("runs/scaling"), help="for figures and picture")
    try:
        options, rest = parser.split(sys.argv[1:] if arguments is None else arguments)
        config = read(rest, "experiments.scaling")
        if config.training.method == "sequential":
            raise ConfigError("training.method = 'sequential': expected one_shot, which is what can be scaled.")
        make_folder(options.folder)
        result = scale(config)
        (options.folder / "scaling.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
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


def scale(config: Config) -> dict[str, Any]:
    """Milliseconds of an iteration, measured and modelled, by devices: strong and weak."""
    cores = count_cores()
    solver = build.solver(config.solver)
    factor, layers = solver.factor(0), config.network.layers
    assert factor is not None
    known = plan.calibrated(config, None, None)
    result: dict[str, Any] = {"layers": layers, "factor": factor, "sequential": 1e3 * known.sequential}
    for kind in ("strong", "weak"):
        rows = []
        devices = 1
        while devices <= -(-layers // factor):
            own = with_layers(config, layers if kind == "strong" else INTERVALS * factor * devices, devices)
            row: dict[str, Any] = {"devices": devices, "layers": own.network.layers, "modelled": None, "measured": None}
            try:
                row["modelled"] = 1e3 * known.seconds(own, solver, devices)
            except ValueError:  # too few layers for two levels
                pass
            if devices <= cores:
                # The number of CPU devices is fixed in a process that has computed, so each needs its own.
                worker = Worker(Devices(devices, cores=last_cores(devices)))
                try:
                    row["measured"] = 1e3 * worker.ask(iteration, own)
                finally:
                    worker.close()
            rows.append(row)
            print(kind, *(f"{key} {_show(value)}" for key, value in row.items()), sep="  ", flush=True)
            devices *= 2
        result[kind] = rows
    return result


def _show(value: Any) -> str:
    return "-" if value is None else f"{value:.2f} ms" if isinstance(value, float) else str(value)


def draw(result: dict[str, Any], file: Path) -> None:
    """Both kinds of scaling beside each other."""
    from experiments.foundation.drawing import Figure

    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    both = figure.subplots(1, 2)
    titles = {
        "strong": f"strong scaling: {result['layers']} layers",
        "weak": f"weak scaling: {INTERVALS * result['factor']} layers per device",
    }
    for axes, kind in zip(both, titles, strict=True):
        for key, style in (
            ("modelled", {"ls": "--", "marker": "", "lw": 1.2}),
            ("measured", {"ls": "", "marker": "o"}),
        ):
            pairs = [(row["devices"], row[key]) for row in result[kind] if row[key] is not None]
            if pairs:
                axes.plot(*zip(*pairs, strict=True), color="C0" if key == "modelled" else "C1", label=key, **style)
        if kind == "strong":
            axes.axhline(result["sequential"], color="0.5", lw=0.8, label="sequential gradient, 1 core (measured)")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set(title=titles[kind], xlabel="devices", ylabel="ms per iteration")
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    terminal.run(main)
