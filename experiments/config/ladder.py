"""The ladder of solvers that the control of inexactness climbs, as a config has it."""

import math

from experiments.config.hierarchies import grid_sizes
from experiments.config.schema import Config
from experiments.config.solver import solver

MOST_SWEEPS = 4  # of Picard, tried before sequential sweeps


def ladder(config: Config) -> list[int | None]:
    """How much the solvers do that `control` chooses from, the config's own first; None: sequential sweeps.

    State cycles; or of a coarse step by p Picard sweeps p + 1, the power to which the layers' increments enter its
    error, so that errors fall from rung to rung as they do with cycles. Behind the most sweeps this times the cycles.
    """
    if config.training.method == "sequential":
        return [None]
    if not config.control.active:
        return [config.solver.cycles]
    if climbs_by_sweeps(config):
        own, m = config.solver.sweeps, _layers_of_a_coarse_step(config)
        if own >= m:
            return [own + 1]  # exact already
        swept = range(own + 1, max(own, min(MOST_SWEEPS, m - 1)) + 2)  # m sweeps would be sequential
        return [*swept, *(swept[-1] * more for more in _more_cycles(config)), None]
    cycles = _cycles(config)
    return [cycles, *(cycles * more for more in _more_cycles(config)), None]


def _cycles(config: Config) -> int:
    """Of the state, in an iteration as the config asks for it; predicting and sweeping counts as one."""
    return config.solver.cycles if config.training.schedule == "cycles_then_gradient" else 1


def _more_cycles(config: Config) -> list[int]:
    """By what the cycles of an iteration are multiplied, before sequential sweeps."""
    return [2**i for i in range(1, 20) if _cycles(config) * 2**i <= config.control.most_cycles]


def sweeps_and_cycles(rungs: list[int | None], rung: int) -> tuple[int, int]:
    """Picard sweeps of a rung of a ladder by sweeps, not the last, and by what its cycles are multiplied."""
    own, count = rungs[0], rungs[rung]
    assert own is not None and count is not None
    # Up to the most sweeps every rung has one more.
    most = own + most_swept(rungs)
    return (count - 1, 1) if count <= most else (most - 1, count // most)


def most_swept(rungs: list[int | None]) -> int:
    """The rung of a ladder by sweeps that has the most of them."""
    own = rungs[0]
    assert own is not None
    return max(i for i, count in enumerate(rungs) if count == own + i)


def _layers_of_a_coarse_step(config: Config) -> int:
    """m, on the coarsest level: as many Picard sweeps are exact."""
    given = solver(config.solver)
    return math.prod(given.factor(level) or 1 for level in range(len(grid_sizes(config, "solver")) - 1))


def climbs_by_sweeps(config: Config) -> bool:
    """Whether the rungs of the `ladder` have ever more Picard sweeps rather than cycles."""
    return config.training.method == "one_shot" and config.solver.coarse_step == "picard"


def fused_sweeps(config: Config, rung: int) -> float:
    """The work of an iteration by a rung, in fused sweeps over all layers; 0: it is sequential.

    Predicting and sweeping is one. A state cycle is a third of it, an adjoint cycle two thirds: it evaluates the layers
    again. The gradient after them is one more.
    """
    rungs = ladder(config)
    first, count = rungs[0], rungs[rung]
    if count is None or first is None:
        return 0.0
    more = sweeps_and_cycles(rungs, rung)[1] if climbs_by_sweeps(config) else count // first
    predicted = config.training.schedule == "predict_then_sweep"
    if predicted and more == 1:
        return 1.0
    state, adjoint = (1, 1) if predicted else (config.solver.cycles, config.adjoint.cycles)
    return 1 + more * (state + 2 * adjoint) / 3
