"""The user's step, parameters, state and step size, checked against each other and sorted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax

from jaxmgrit._checks import alike, check_layers, check_scalar, check_step, check_step_size, describe, evaluated
from jaxmgrit.backend.base import Backend
from jaxmgrit.solvers.mgrit.options import MGRIT, Solver, check_solver
from jaxmgrit.system.partition import Level, lay_out
from jaxmgrit.system.step import Equation, Shared, Slot

PyTree = Any


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
        h = backend.scatter(lay_out(self.slots.h, level))
        return Slot(self.slots.theta if self.spread else backend.scatter(lay_out(self.slots.theta, level)), h)

    def with_coarse_step(self, solver: Solver) -> Equation:
        """The equation with a solver's choice of coarse step."""
        return replace(self.equation, coarse_step=solver.coarse_step) if isinstance(solver, MGRIT) else self.equation


def make_network(
    step: Callable[..., PyTree],
    theta: PyTree,
    u0: PyTree,
    h: Any,
    *solvers: Solver,
    running_cost: Callable[..., Any] | None = None,
    layers: int | None = None,
    parts: int = 1,
) -> Network:
    """Check step, parameters, state, step size and solvers against each other; nothing is computed.

    The number of layers is the leading axis of theta, unless `layers` says that theta is laid out and sharded already.
    `parts` is the number of parts of the batch.

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
    network = Network(
        Equation(step, running_cost, h=number, parts=parts), layers, Slot(theta, per_layer), Shared(scalar), spread
    )
    slot = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), network.slots)
    state = jax.eval_shape(lambda: u0)
    check_step(evaluated(network.equation.advance, "step", slot, state, network.shared), state, "step")
    if running_cost is not None:
        check_scalar(evaluated(network.equation.cost, "running_cost", slot, state, network.shared), "running_cost")
    for solver in solvers:
        check_solver("solver", solver)
        if isinstance(solver, MGRIT) and (m := solver.factor(0)) is not None:
            _check_coarsening(network, solver, m, slot, state)
    return network


def _check_coarsening(network: Network, solver: MGRIT, m: int, slot: Slot, state: PyTree) -> None:
    several = jax.tree.map(lambda x: jax.ShapeDtypeStruct((m, *x.shape), x.dtype), slot.theta)
    coarse = Slot(jax.eval_shape(solver.coarse_params, several), slot.h)
    if not alike(coarse.theta, slot.theta):
        raise TypeError(
            f"coarse_params makes {describe(coarse.theta)} from {m} layers, but one layer is {describe(slot.theta)}; "
            "it must return the parameters of one layer, without the leading axis."
        )
    equation = network.with_coarse_step(solver)

    def coarse_advance(s: Slot, u: PyTree, shared: Shared) -> PyTree:
        return equation.advance(s, u, shared, m, fine=False)

    check_step(evaluated(coarse_advance, "coarse_step", coarse, state, network.shared), state, "coarse_step")
    if solver.norm is not None:
        check_scalar(jax.eval_shape(solver.norm, state), "norm")
