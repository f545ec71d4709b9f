"""The user's step, parameters, state and step size, checked against each other and sorted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import jax

from jaxmgrit._checks import (
    check_layers,
    check_pair,
    check_scalar,
    check_solver,
    check_step,
    check_step_size,
    evaluated,
)
from jaxmgrit.system.partition import Level, lay_out
from jaxmgrit.system.programs import Programs
from jaxmgrit.system.step import Equation, Given, Shared, Slot

if TYPE_CHECKING:
    from jaxmgrit._types import Layers, State, StepSize
    from jaxmgrit.backend.base import Backend

PyTree = Any


class Choices(Protocol):
    """What a network asks of a solver; see `jaxmgrit.solvers.base.Solver`."""

    @property
    def coarse_step(self) -> Callable[..., PyTree] | None:
        """(step, theta, u, h, m) -> u_next of a coarse level."""

    def check(self, network: Network, slot: Slot, state: State) -> None:
        """Raise unless the solver can take the network."""


@dataclass(frozen=True)
class Network:
    """A checked network: its equation, its layers (leading axis N) and what they share."""

    equation: Equation
    layers: int
    slots: Slot
    shared: Shared
    spread: bool = False
    """Whether the parameters are laid out and sharded already."""

    def on(self, level: Level, backend: Backend) -> Slot:
        """The slots in a level's layout, sharded."""
        h, y_bar = backend.scatter(lay_out((self.slots.h, self.slots.y_bar), level))
        return Slot(self.slots.theta if self.spread else backend.scatter(lay_out(self.slots.theta, level)), h, y_bar)

    def with_coarse_step(self, solver: Choices) -> Equation:
        """The equation with a solver's choice of coarse step."""
        return replace(self.equation, coarse_step=solver.coarse_step)


def make_network(
    step: Callable[..., PyTree],
    theta: Layers,
    u0: State,
    h: StepSize,
    *solvers: Choices,
    running_cost: Callable[..., Any] | None = None,
    layers: int | None = None,
    parts: int = 1,
    outputs: bool = False,
    given: Given | None = None,
) -> Network:
    """Check step, parameters, state, step size and solvers against each other; nothing is computed.

    The number of layers is the leading axis of theta, unless `layers` says that theta is laid out and sharded already.
    `parts` is the number of parts of the batch. With `outputs` step is a scan's: (theta, u, h) -> (u_next, y). What is
    `given` is a fourth argument of step and running cost.

    Raises:
        TypeError, ValueError: what does not fit, what was expected and what to do.
    """
    if not callable(step):
        raise TypeError(f"step={step!r} is not a function; give step(theta, u, h) -> u_next.")
    if running_cost is not None and not callable(running_cost):
        raise TypeError(
            f"running_cost={running_cost!r} is not a function; give running_cost(theta, u, h) -> scalar, or None."
        )
    spread = layers is not None
    layers = check_layers(theta) if layers is None else layers
    number, scalar, per_layer = check_step_size(h, layers, u0)
    programs = Programs()
    network = Network(
        Equation(
            step,
            running_cost,
            h=number,
            parts=parts,
            outputs=outputs,
            given=given is not None,
            programs=programs,
        ),
        layers,
        Slot(theta, per_layer),
        Shared(scalar, given=given or Given()),
        spread,
    )
    slot = jax.eval_shape(lambda slots: jax.tree.map(lambda x: x[0], slots), network.slots)
    state = jax.eval_shape(lambda u: u, u0)
    if outputs:
        check_pair(evaluated(network.equation.call, "f", slot, state, network.shared), state, "f")
    else:
        check_step(evaluated(network.equation.call, "step", slot, state, network.shared), state, "step")
    if running_cost is not None:
        check_scalar(evaluated(network.equation.cost, "running_cost", slot, state, network.shared), "running_cost")
    for solver in solvers:
        check_solver("solver", solver)
        solver.check(network, slot, state)
    # Closed last: the checks above have traced step and coarse steps, and so found what those close over.
    return replace(network, shared=network.shared._replace(constants=programs.close()))
