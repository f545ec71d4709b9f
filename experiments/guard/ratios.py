"""The ratios that are guarded: times over the best sequential program's, all of one group in turns on one core."""

from collections.abc import Callable, Mapping
from typing import Any

import jaxmgrit as jm
from experiments import recurrences
from experiments.networks.smooth import Layout, tanh_step
from experiments.timing import turns
from experiments.timing.contenders import Case, Program, contenders, network, trained
from experiments.timing.devices import Devices
from experiments.timing.sequential import propagations
from experiments.zoo.compilation import compile_times
from experiments.zoo.gradients import gradient_of

PyTree = Any
Ratios = dict[str, float]

LAYERS, WIDTH, FACTOR = 1024, 8, 32
LAYOUT: Layout = "width_first"  # the faster one of such states
SECONDS = 12.0  # that the calls of a group take, about
SEQUENTIAL = ("scan", "scan, layers rematerialised", "scan, segments", "scan, segments, layers rematerialised")


def default_propagate() -> Ratios:
    """`jm.propagate` as it comes, in place of a scan: value and gradient."""
    problem, params, (x, _) = network(Case(LAYERS, WIDTH, 32, "float32", FACTOR), LAYOUT)
    step = tanh_step(LAYOUT)
    ways = propagations(step, problem.h, LAYERS)
    swapped = {"swap": lambda theta, u0: jm.propagate(step, theta, u0, h=problem.h)}
    programs = {name: gradient_of(f) for name, f in {**ways, **swapped}.items()}
    timed = turns.in_turns(programs, (params.layers, x), SECONDS)
    return {
        "jm.propagate, batch 32": timed["swap"].seconds / min(timed[name].seconds for name in ways),
        "jm.propagate over the plain scan, batch 32": timed["swap"].seconds / timed["plain"].seconds,
    }


def thin() -> Ratios:
    """Steps of training with 8 points: one-shot, and gradients by cycles; and what they take to compile."""
    case = Case(LAYERS, WIDTH, 8, "float32", FACTOR)
    programs, ours = _sequential(case), _ours(case)
    compiling = {name: _alone(ours[name]) for name in ("one-shot, average", "one-shot, picard(2)")}
    compiling["scan"] = _alone(programs["scan, layers rematerialised"])
    seconds = compile_times(compiling, 3)
    compiled = {f"compiling: {name}": value / seconds["scan"] for name, value in seconds.items() if name != "scan"}
    return {f"{name}, batch 8": value for name, value in _over_best(programs, ours).items()} | compiled


def wide() -> Ratios:
    """One-shot steps with 500 points."""
    case = Case(LAYERS, WIDTH, 500, "float32", FACTOR)
    name = "one-shot, average"
    return {f"{name}, batch 500": _over_best(_sequential(case), {name: _ours(case)[name]})[name]}


def newton() -> Ratios:
    """The gradient of a GRU's weights by Newton over backpropagation."""
    row = recurrences.measured(2048, 4, 1, 32, SECONDS)
    return {"Newton on a GRU, 4 features": row["newton"], "Newton's adjoint on a GRU, 4 features": row["prefix"]}


GROUPS: tuple[Callable[[], Ratios], ...] = (default_propagate, thin, wide, newton)


def _sequential(case: Case) -> dict[str, Program]:
    known = {c.name: c for c in contenders(case, (LAYOUT,), Devices())}
    return {name: known[name].build() for name in SEQUENTIAL}


def _ours(case: Case) -> dict[str, Program]:
    smooth = jm.MGRIT(case.factor, levels=2, coarse_params=jm.average, coarse_step=jm.midpoint)
    rough = jm.MGRIT(case.factor, levels=2, coarse_params=jm.all_layers, coarse_step=jm.picard(2))
    cycles = jm.MGRIT(16, levels=2, cycles=2)
    return {
        "one-shot, average": trained(case, LAYOUT, Devices(), smooth, jm.PredictThenSweep()),
        "one-shot, picard(2)": trained(case, LAYOUT, Devices(), rough, jm.PredictThenSweep()),
        "2 + 2 cycles": trained(case, LAYOUT, Devices(), cycles, jm.CyclesThenGradient()),
    }


def _alone(program: Program) -> tuple[Callable[..., PyTree], tuple[PyTree, ...]]:
    return program.step, (program.state, program.batch)


def _over_best(sequential: Mapping[str, Program], ours: Mapping[str, Program]) -> Ratios:
    """Our programs' times over the best sequential one's."""
    programs = {**sequential, **ours}
    # All are called with the same arguments, of which each uses its own; the compiler drops the others.
    states = {name: (program.state, program.batch) for name, program in programs.items()}

    def by_name(name: str) -> Callable[[PyTree], PyTree]:
        return lambda states: programs[name].step(*states[name])

    timed = turns.in_turns({name: by_name(name) for name in programs}, (states,), SECONDS)
    best = min(timed[name].seconds for name in sequential)
    return {name: timed[name].seconds / best for name in ours}
