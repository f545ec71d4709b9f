"""What is compared, what it costs by measurement, and tasks of workers that measure."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax

import jaxmgrit as jm
from experiments.networks.smooth import Layout
from experiments.timing.calibration import Network, coarse_steps, evaluations, messages, sequential, three
from experiments.timing.contenders import Case, network, trained
from experiments.timing.devices import Devices
from jaxmgrit.analysis.cost_model import Costs, Counts, Sizes, iteration_counts, total
from jaxmgrit.solvers.mgrit.grids import sweep_batch

LAYOUT: Layout = "width_first"
REPEATS = 9
SHARE = 4  # layers per device in weak scaling, the coarsening factor too

Schedule = jm.CyclesThenGradient | jm.PredictThenSweep
Way = tuple[jm.MGRIT, Schedule]

_SMOOTH: dict[str, Any] = {"coarse_params": jm.average, "coarse_step": jm.midpoint, "cycles": 1}
WEAK: dict[str, Way] = {
    "2 + 2 V-cycles": (jm.MGRIT(SHARE, cycles=2), jm.CyclesThenGradient()),
    "2 + 2 F-cycles": (jm.MGRIT(SHARE, cycles=2, cycle="F"), jm.CyclesThenGradient()),
    "one-shot, average": (jm.MGRIT(SHARE, **_SMOOTH), jm.PredictThenSweep()),
}
STRONG: dict[str, Way] = {
    "2 + 2 V-cycles": WEAK["2 + 2 V-cycles"],
    "one-shot, average": (jm.MGRIT((16, 4), levels=3, **_SMOOTH), jm.PredictThenSweep()),
    "one-shot, picard(2)": (
        jm.MGRIT(16, levels=2, coarse_params=jm.all_layers, coarse_step=jm.picard(2)),
        jm.PredictThenSweep(),
    ),
}


def counted(way: Way, layers: int, devices: int, sizes: Sizes) -> tuple[Counts, ...]:
    """What one device does in an iteration, level by level, first of the state and then of adjoint and gradient.

    Args:
        way: Solver and schedule.
        layers: N.
        devices: P.
        sizes: Bytes of what is sent.

    Raises:
        ValueError: More devices than intervals, or too few layers.
    """
    solver, schedule = way
    state, adjoint = iteration_counts(schedule, layers, solver, solver, devices, sizes)
    return (*state, *adjoint)


def path(counts: Sequence[Counts]) -> dict[str, int]:
    """Evaluations of Phi, pullbacks and messages one after another on one device."""
    all_levels = total(tuple(counts))
    return {"phi": all_levels.all_phi, "pullbacks": all_levels.all_vjp, "messages": all_levels.messages}


def layers_of(case: Case) -> Network:
    """The case's layers and first states."""
    problem, params, (x, _) = network(case, LAYOUT)
    return Network(problem.step, params.layers, x, problem.h)


def sizes_of(case: Case) -> Sizes:
    """Bytes of float32 states, of layers (a matrix and a bias) and of numbers."""
    return Sizes(4 * case.width * case.batch, 4 * case.width * (case.width + 1), 4)


def batch_of(way: Way, case: Case, devices: int) -> int:
    """Intervals in one batched sweep of the finest level."""
    share = way[0].hierarchy(case.layers, devices)[0].share
    return sweep_batch(way[0], jax.ShapeDtypeStruct((case.width, case.batch), "float32"), "cpu", share)


class Known:
    """Measured costs of a case's layers, by intervals in a sweep and by way; measured when first asked for.

    Args:
        ask: Does a task in a process with one core, as `Worker.ask`.
        case: The network.
        message: Seconds per message and per byte.
    """

    def __init__(self, ask: Callable[..., Any], case: Case, message: tuple[float, float]) -> None:
        self._ask, self._case, self._message = ask, case, message
        self._swept: dict[int, tuple[float, float, float]] = {}
        self._coarse: dict[str, tuple[float, float]] = {}

    def seconds(self, name: str, way: Way, layers: int, devices: int) -> float:
        """Modelled seconds of an iteration.

        Raises:
            ValueError: As of `counted`.
        """
        case = replace(self._case, layers=layers)
        counts = counted(way, layers, devices, sizes_of(case))
        solver, _ = way
        batch = 2 ** (batch_of(way, case, devices).bit_length() - 1)
        for b in (1, batch):
            if b not in self._swept:
                self._swept[b] = self._ask(sweeps, self._case, b)
        if name not in self._coarse:
            self._coarse[name] = self._ask(coarse, self._case, solver)
        message = self._message if devices > 1 else (0.0, 0.0)
        costs = Costs(*self._swept[batch], *self._swept[1], *self._coarse[name], *message, evaluations(solver))
        return costs.seconds(counts)


def sweeps(memory: Any, case: Case, batch: int) -> tuple[float, float, float]:
    """Task: seconds of Phi, of its pullback, and of that to state and parameters, so many intervals at a time."""
    return three(layers_of(case), 1, 16, batch, Devices())


def coarse(memory: Any, case: Case, solver: jm.MGRIT) -> tuple[float, float]:
    """Task: seconds of a coarse step and of its pullback."""
    return coarse_steps(layers_of(case), solver, 16, Devices())


def message(memory: Any, case: Case) -> tuple[float, float]:
    """Task of a worker with two devices: seconds per message and per byte."""
    return messages(layers_of(case).u0, Devices(2))


def alone(memory: Any, case: Case) -> float:
    """Task: seconds of the sequential gradient, the faster of two rematerialised scans."""
    return sequential(layers_of(case), case.factor)


def step(memory: Any, case: Case, devices: Devices, way: Way) -> float:
    """Task: median seconds of a step of training."""
    program = trained(case, LAYOUT, devices, way[0], way[1])
    update, state, seconds = jax.jit(program.step, donate_argnums=0), program.state, []
    for _ in range(2 + REPEATS):
        start = time.perf_counter()
        state, _ = update(state, program.batch)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
    # Without the first two: at least one of them compiles.
    return statistics.median(seconds[2:])
