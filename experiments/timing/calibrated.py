"""What was measured of a config's network, and the times of iterations that follow from it."""

from dataclasses import dataclass, field
from typing import Any

import jax

import jaxmgrit as jm
from experiments.config.schema import Config
from experiments.timing.calibration import evaluations
from experiments.training import build
from jaxmgrit.analysis.cost_model import Costs, Sizes, cyclic_counts, iteration_counts
from jaxmgrit.solvers.mgrit.grids import sweep_batch


@dataclass(frozen=True)
class Calibration:
    """What was measured: seconds by intervals per sweep, and of the sequential gradient; and the sizes.

    Attributes:
        swept: (Phi, pullback to the state, pullback to state and parameters) by intervals per sweep.
        coarse: (a coarse step by itself, its pullback).
        sequential: seconds of the sequential gradient.
        message: (seconds per message, seconds per byte).
        sizes: bytes of what is sent.
        like: a state, as shapes.
        kept: `coarse` of steps that keep all layers, by how many they are; empty where steps stand for one layer.
    """

    swept: dict[int, tuple[float, float, float]]
    coarse: tuple[float, float]
    sequential: float
    message: tuple[float, float]
    sizes: Sizes
    like: Any
    kept: dict[int, tuple[float, float]] = field(default_factory=dict)

    def seconds(self, config: Config, solver: jm.MGRIT, devices: int) -> float:
        """Predicted time of an iteration.

        Raises:
            ValueError: there is no such hierarchy, or it has fewer intervals than devices.
        """
        schedule = build.SCHEDULES[config.training.schedule]
        levels = solver.hierarchy(config.network.layers, devices)
        if len(levels) == 1:
            raise ValueError(f"{config.network.layers} layers have one level only with {solver}")
        batch = sweep_batch(solver, self.like, jax.default_backend(), levels[0].share)
        # Some numbers of intervals were measured, mostly powers of two.
        nearest = min(self.swept, key=lambda known: abs(known - batch))
        coarse = self.kept[min(self.kept, key=lambda m: abs(m - levels[-1].stride))] if self.kept else self.coarse
        costs = Costs(*self.swept[nearest], *self.swept[1], *coarse, *self.message, evaluations(solver))
        counts = iteration_counts(schedule, config.network.layers, solver, solver, devices, self.sizes)
        return sum(costs.seconds(part) for part in counts)

    def cyclic(self, config: Config, solver: jm.MGRIT, devices: int) -> float:
        """As `seconds`, if the layers were dealt out to the devices in turn (`jm.cost_model.cyclic_counts`).

        Raises:
            ValueError: another schedule than `predict_then_sweep`, or as `cyclic_counts`.
        """
        if config.training.schedule != "predict_then_sweep":
            raise ValueError(f"{config.training.schedule} sweeps more than once")
        parts = cyclic_counts(config.network.layers, solver, devices, self.sizes)
        share = -(-solver.hierarchy(config.network.layers, 1)[1].stride // devices)
        # So many layers at once take as long as so many intervals of one layer each.
        phi, vjp, _ = self.swept[min(self.swept, key=lambda known: abs(known - share))]
        wide = evaluations(solver) * share
        costs = Costs(*self.swept[1], *self.swept[1], wide * phi, wide * vjp, *self.message)
        return sum(costs.seconds(part) for part in parts)
