"""What one of two processes on two hosts measures: messages between them, and steps of training spread over both.

python -m experiments.hosts.probe OUT LAYERS WIDTH BATCH FACTOR mpi
python -m experiments.hosts.probe OUT LAYERS WIDTH BATCH FACTOR COORDINATOR PROCESS

The first process writes OUT.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import jaxmgrit as jm
from experiments.timing.calibration import KINDS, message_seconds
from experiments.timing.contenders import Case, network
from experiments.timing.devices import Devices

REPEATS = 21
HOPS = 16  # messages in a loop: a link may take milliseconds for each


def schedules(factor: int) -> dict[str, tuple[jm.MGRIT, jm.CyclesThenGradient | jm.PredictThenSweep]]:
    """Steps of training by name: solver of state and adjoint, and schedule."""
    smooth = jm.MGRIT(factor, levels=2, coarse_params=jm.average, coarse_step=jm.midpoint)
    return {
        "predict, then sweep": (smooth, jm.PredictThenSweep()),
        "1 + 1 cycles": (jm.MGRIT(factor, levels=2, cycles=1), jm.CyclesThenGradient()),
        "2 + 2 V-cycles": (jm.MGRIT(factor, levels=3, cycles=2), jm.CyclesThenGradient()),
    }


def step(name: str, case: Case, backend: jm.Local | jm.Mesh | jm.MPI) -> Callable[[], object]:
    """One step of training, always the same."""
    problem, params, batch = network(case, "batch_first")
    solver, schedule = schedules(case.factor)[name]
    trainer = jm.OneShot(problem, optax.sgd(1e-3), solver=solver, adjoint=solver, schedule=schedule, backend=backend)
    update = jax.jit(trainer.step)
    state = trainer.init(params, batch)
    return lambda: update(state, batch)


def seconds(runs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Times of calls of each, called in turns."""
    for run in runs.values():
        # Compiles, each process in its own time; the messages in it make both ready at once.
        jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
    return times


def main(out: str, *words: str) -> None:
    """Measure, and write what the first process has measured."""
    layers, width, batch, factor, connection, *process = words
    devices = Devices(2, mpi=connection == "mpi")
    if not devices.mpi:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(connection, 2, int(process[0]))
    backend = devices.backend
    first = (backend.comm.Get_rank() if isinstance(backend, jm.MPI) else jax.process_index()) == 0
    case = Case(int(layers), int(width), int(batch), "float32", int(factor))
    small = jnp.zeros((8,), case.dtype)
    times = seconds({name: step(name, case, backend) for name in schedules(case.factor)})
    # The quickest, of messages too: what else the machine does only ever adds to a time.
    measured = {
        "messages": {kind: message_seconds(kind, small, devices, HOPS, min) for kind in KINDS},
        "steps": {name: min(samples) for name, samples in times.items()},
        "medians": {name: statistics.median(samples) for name, samples in times.items()},
    }
    if first:
        Path(out).write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
