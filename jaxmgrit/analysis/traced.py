"""The library's programs, traced for counting: on shapes, with a step that leaves a mark, for any number of devices."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import PyTree, real_dtype
from jaxmgrit.analysis import marks
from jaxmgrit.analysis.counting import Counting
from jaxmgrit.analysis.counts import NOTHING, Counts, Sizes
from jaxmgrit.analysis.walk import Tally, Walk
from jaxmgrit.solvers.newton.solver import Newton
from jaxmgrit.system.network import Network
from jaxmgrit.system.step import Equation, Shared, Slot
from jaxmgrit.training.schedules.base import Head, Schedule, Setting
from jaxmgrit.verbs.adjoint import adjoint_network
from jaxmgrit.verbs.state import solve_network

if TYPE_CHECKING:
    from jaxmgrit._types import Layers, State
    from jaxmgrit.solution import Solution
    from jaxmgrit.solvers.base import Solver


@dataclass(frozen=True)
class Shapes:
    """A network's arrays as shapes, where their sizes in bytes are not enough to trace a program with.

    Needed where a solver's own functions (`norm`, `coarse_params`, what it does with a state) ask for the structure.

    Args:
        layer: parameters of one layer, arrays or `jax.ShapeDtypeStruct`s.
        state: one state; with a data axis that of a part of the batch.
        step_sizes: whether there is one step size per layer.

    Example:
        >>> import jax.numpy as jnp, jaxmgrit as jm
        >>> shapes = jm.cost_model.Shapes(jnp.ones((4, 4)), jnp.ones((10, 4)))
        >>> counts = jm.cost_model.solve_counts(64, jm.MGRIT(4), 8, shapes)
        >>> jm.cost_model.total(counts).gathers > 0
        True
    """

    layer: PyTree
    state: PyTree
    step_sizes: bool = False

    @classmethod
    def of(cls, sizes: Sizes) -> Shapes:
        """Arrays of so many bytes, rounded up to whole numbers."""
        item = sizes.number if sizes.number in (2, 4, 8) else 4
        dtype = {2: jnp.float16, 4: jnp.float32, 8: jnp.float64}[item]

        def of_bytes(size: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((-(-size // item),), dtype)

        return cls(of_bytes(sizes.layer), of_bytes(sizes.state), sizes.step_size > 0)

    @property
    def precision(self) -> AbstractContextManager[Any]:
        """Lets arrays of double precision be traced."""
        leaves = jax.tree.leaves((self.layer, self.state))
        return jax.enable_x64(True) if any(x.dtype.itemsize == 8 for x in leaves) else nullcontext()


class _MarkedEquation(Equation):
    # Not to be hashed, so that no program made for counting is remembered in the place of one that runs.
    __hash__ = None  # type: ignore[assignment]


class _MarkedNetwork(Network):
    """A network whose steps are marks, whatever a solver's coarse step."""

    def with_coarse_step(self, solver: Any) -> Equation:
        """The equation with a mark for a coarse step."""
        return replace(self.equation, coarse_step=marks.marked_coarse_step)


@dataclass(frozen=True)
class _OneOfMany:
    """Coarse parameters as a user's function makes them, as far as sizes tell: those of one layer."""

    of: Callable[[PyTree], PyTree]

    def __call__(self, theta: Layers) -> PyTree:
        return jax.tree.map(lambda x: x[0], theta)


@dataclass(frozen=True)
class Case:
    """What is to be traced: a network of some size on some devices.

    Attributes:
        layers: N.
        devices: the layers are spread over.
        sizes: of the arrays.
        data: parts of the batch.
    """

    layers: int
    devices: int
    sizes: Sizes | Shapes
    data: int

    @property
    def shapes(self) -> Shapes:
        """Of the arrays."""
        return self.sizes if isinstance(self.sizes, Shapes) else Shapes.of(self.sizes)

    def setting(self, solver: Solver, adjoint: Solver) -> Setting:
        """Solvers and the backend that counts."""
        return Setting(self._bearable(solver), self._bearable(adjoint), Counting(self.devices, self.data))

    def _bearable(self, solver: Solver) -> Solver:
        """A solver without a user's functions that could ask for more than sizes, where only these are known."""
        if isinstance(self.sizes, Shapes) or not is_dataclass(solver):
            return solver
        own = {f.name for f in fields(solver)}
        params, changes = solver.coarse_params, {}
        if "coarse_params" in own and params is not None and not params.__module__.startswith("jaxmgrit."):
            changes["coarse_params"] = _OneOfMany(params)
        if "norm" in own:
            changes["norm"] = None
        return replace(solver, **changes)

    def network(self, slots: int, layer: Layers) -> Network:
        """So many slots on this device, from the parameters of one layer."""
        theta = jax.tree.map(lambda x: jnp.broadcast_to(x, (slots, *x.shape)), layer)
        h = jnp.ones((self.layers,), real_dtype(self.shapes.state)) if self.shapes.step_sizes else None
        equation = _MarkedEquation(marks.marked_step, h=None if self.shapes.step_sizes else 1.0, parts=self.data)
        return _MarkedNetwork(equation, self.layers, Slot(theta, h), Shared(), spread=True)


Program = Callable[[Case, Setting, PyTree, PyTree], Any]


def counts(
    case: Case, program: Program, solver: Solver, adjoint: Solver
) -> tuple[tuple[Counts, ...], tuple[Counts, ...]]:
    """Counts of a program of (case, setting, one layer's parameters, a state), up to its loss and from there on."""
    if not isinstance(case.sizes, Shapes) and any(isinstance(one, Newton) for one in (solver, adjoint)):
        raise ValueError(
            "cost_model: Newton pushes a tangent on for every component of a sample, and bytes do not tell how many "
            "there are; give sizes=jm.cost_model.Shapes(layer, state)."
        )
    shapes, setting = case.shapes, case.setting(solver, adjoint)
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (shapes.layer, shapes.state))
    with shapes.precision:
        closed = jax.make_jaxpr(lambda layer, state: program(case, setting, layer, state))(*arguments)
    before, after = Walk().parts(closed, (getattr(solver, "cycles", 1), getattr(adjoint, "cycles", 1)))
    sent = case.sizes != NOTHING
    return (
        _by_level(before, solver.hierarchy(case.layers, case.devices), sent),
        _by_level(after, adjoint.hierarchy(case.layers, case.devices), sent),
    )


def _by_level(tally: Tally, levels: Any, sent: bool) -> tuple[Counts, ...]:
    """By depth rather than stride, pullbacks sorted into those to the state alone and those to parameters too."""
    strides = sorted({1, *(level.stride for level in levels), *(stride for stride, _ in tally)})
    while len(strides) > 1 and not any(tally[strides[-1], what] for stride, what in tally if stride == strides[-1]):
        strides.pop()

    def of_level(stride: int) -> Counts:
        own = {what: times for (level, what), times in tally.items() if level == stride}
        for serial in ("", "serial_"):
            both, parameters = own.pop(f"{serial}state", 0), own.pop(f"{serial}parameters", 0)
            # A pullback to parameters leaves two marks, its own and one to the state.
            own[f"{serial}vjp"], own[f"{serial}grad"] = both - parameters, parameters
        # Without sizes there are no bytes to speak of.
        return Counts(**own if sent else {**own, "bytes": 0})

    return tuple(of_level(stride) for stride in strides)


def solve_alone(case: Case, setting: Setting, layer: Layers, state: State) -> Solution:
    """`solve`."""
    solver, _, backend = setting
    level = solver.hierarchy(case.layers, backend.size)[0]
    return solve_network(case.network(level.share * level.factor, layer), state, solver, None, backend)


def then_adjoint(gradients: bool) -> Program:
    """`solve`; and as the second part `adjoint_solve`, with the layers' gradients or without."""

    def program(case: Case, setting: Setting, layer: Layers, state: State) -> Any:
        sol = solve_alone(case, setting, layer, state)
        network = case.network(sol.level.share * sol.level.factor, layer)
        lam = marks.split(sol.u_final)
        return adjoint_network(network, sol, lam, setting.adjoint, None, setting.backend, gradients=gradients)

    return program


def iteration(schedule: Schedule) -> Program:
    """An iteration of a schedule, in two parts with the loss between them."""

    def head(u_final: State) -> Head:
        lam = marks.split(u_final)
        return Head(jnp.zeros((), real_dtype(lam)), None, None, lam)

    def program(case: Case, setting: Setting, layer: Layers, state: State) -> Any:
        level = schedule.level(case.layers, setting)
        warm = setting.backend.scatter_states(schedule.init(case.layers, state, setting))
        network = case.network(level.share * level.factor, layer)
        return schedule.gradient(network, state, head, warm, setting)

    return program
