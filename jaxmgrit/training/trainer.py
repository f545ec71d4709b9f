"""What `OneShot` and `PublishedLoop` share: their first state, parameters, exact evaluation, snapshots, batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp

from jaxmgrit._checks import check_backend, check_solver
from jaxmgrit._pytree import copies, split
from jaxmgrit.solvers.sequential import match_segments
from jaxmgrit.training.common import Extra
from jaxmgrit.training.objective import Training
from jaxmgrit.training.optimizer_state import init_optimizer, layer_axes
from jaxmgrit.training.schedules.base import Schedule, Setting
from jaxmgrit.training.snapshot import Snapshot, export, restore
from jaxmgrit.training.state import Params, TrainState
from jaxmgrit.training.warm import SAME, UNKNOWN, Opening, fingerprint

if TYPE_CHECKING:
    from jaxmgrit.backend.base import Backend
    from jaxmgrit.solvers.base import Solver
    from jaxmgrit.training.problem import Problem

PyTree = Any


class Trainer(ABC):
    """Everything of a trainer but its iteration and its optimiser; a frozen dataclass with at least these fields."""

    problem: Problem
    solver: Solver | None
    adjoint: Solver | None
    backend: Backend
    start: Any
    _starts: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def training(self) -> Training:
        """Objective and inexact gradient at laid-out parameters."""

    @property
    @abstractmethod
    def _first_memory(self) -> Callable[[Params], PyTree]:
        """(differentiable parameters, layers with leading axis N) -> what the optimiser first remembers."""

    def _measured(self, params: Params) -> Params:
        """Differentiable parameters as the optimiser remembers them."""
        return params

    def _check_options(self) -> None:
        """Raise a TypeError or ValueError naming the first option of those shared that is not what it should be."""
        name = type(self).__name__
        for option in ("solver", "adjoint"):
            if getattr(self, option) is not None:
                check_solver(f"{name}: {option}", getattr(self, option))
        check_backend(self.backend, f"{name}: backend")
        if self.start not in self._starts:
            choices = ", ".join(map(repr, self._starts[:-1]))
            raise ValueError(f"{name}: start={self.start!r} is unknown; choose {choices} or {self._starts[-1]!r}.")

    def _training(self, default: Solver, schedule: Schedule) -> Training:
        # A `Sequential` of open segments ends them where its partner's intervals end.
        solver, adjoint = match_segments(self.solver or default, self.adjoint or default)
        return Training(self.problem, schedule, Setting(solver, adjoint, self.backend))

    def init(self, params: Params, batch: tuple[Any, Any]) -> TrainState:
        """The state before the first iteration: copies of the parameters, cold warm values.

        Args:
            params: initial parameters.
            batch: (x, y), the whole training set.

        Raises:
            TypeError, ValueError: parameters, batch and problem that do not fit together, or values that are not
                finite; too many parameters for `BFGS()`.
        """
        training = self.training
        start = training.start(params, batch)
        # Copies: some optimisers keep the parameters themselves, and no buffer may be donated twice.
        storage = training.storage(start.layers)
        optimizer = copies(init_optimizer(self._first_memory, self._measured(split(params)[0]), storage))
        iteration = self.backend.replicate(jnp.zeros((), jnp.int32))
        warm = training.carried(start.warm) if self.start == "cold" else start.warm
        return TrainState(start.params, optimizer, warm, iteration, start.layers, start.batch)

    def params(self, state: TrainState) -> Params:
        """The parameters, layers with leading axis N; copies, which donating the state does not eat."""
        return self.training.whole(state.params, state.layers)

    def evaluate(
        self, state: TrainState, batch: tuple[Any, Any], *, context: PyTree = None, key: Any = None
    ) -> tuple[Any, Any]:
        """The loss and its aux of the network evaluated exactly, one layer after another, where its layers live.

        What a user of the trained network gets; pure. Unlike `problem.evaluate(trainer.params(state), batch)` it never
        needs the layers of all devices on one.

        Args:
            state: from `init` or `step`.
            batch: any (x, y); with a data axis too it is whole on every device.
            context: what it comes with, see `Common`.
            key: of random layers; None, the usual choice: `common.key` is None.
        """
        return self.training.exact(state.params, batch, state.layers, Extra(context, key))

    def export(self, state: TrainState) -> Snapshot:
        """The state as NumPy arrays that belong to no layout, to be saved or restored; the same on every process.

        Under several processes all must call it. `restore` on the same layout gives a state that trains on bit for
        bit as this one does; on another number of devices, or another backend, it does up to rounding.
        """
        return export(self.training, state, self._axes(state))

    def restore(self, state: TrainState, snapshot: Snapshot) -> TrainState:
        """Undo `export`.

        Args:
            state: any state of this trainer, such as one from `init`; it tells structure and dtypes, and stays intact.
            snapshot: of a trainer that differs in nothing but the backend (and in options that keep no values).

        Raises:
            ValueError: the snapshot's structure, shapes or dtypes are not those of this trainer's states.
        """
        # A snapshot does not say which batch its warm values belong to: the next one is believed.
        batch = None if state.batch is None else self.backend.replicate(jnp.full_like(state.batch, UNKNOWN))
        return TrainState(*restore(self.training, state, self._axes(state), snapshot), state.layers, batch)

    def _axes(self, state: TrainState) -> PyTree:
        """The axis over the layers of every leaf of what the optimiser remembers."""
        shapes = self.training.storage(state.layers).shapes(split(state.params)[0])
        return layer_axes(self._first_memory, shapes, state.layers)

    def cold(self, state: TrainState, batch: tuple[Any, Any]) -> TrainState:
        """The state with cold warm values for a batch, as `init` makes them; everything else is kept.

        A schedule's moving average goes on (`PredictThenSweep(moving_average=0.8)`). Pure. With start="cold" every step
        does it by itself.

        Args:
            state: from `init`, `cold` or `step`, for a batch of any size.
            batch: (x, y) of the next step.
        """
        if self.start == "cold":
            return state
        warm = self.training.cold(state.params, state.warm, batch, state.layers)
        return replace(state, warm=warm, batch=self.backend.replicate(fingerprint(batch)))

    def _opening(self, state: TrainState, batch: tuple[Any, Any]) -> Opening:
        """The warm values that a step on a whole batch starts from."""
        if self.start == "cold":
            return Opening(self.training.cold(state.params, state.warm, batch, state.layers), SAME, state.batch)
        return self.training.opening_of(state.warm, state.batch, batch)

    def _check_key(self, state: TrainState, key: Any) -> None:
        # Sequential solvers keep no warm values: with them a key per iteration does no harm.
        if key is not None and self.start != "cold" and jax.tree.leaves(state.warm):
            raise ValueError(
                f"key: warm values belong to one draw of the random layers, but start={self.start!r} keeps them from "
                f"step to step; with a key per iteration take jm.{type(self).__name__}(start='cold')."
            )
