"""One-shot training: a few cycles per optimiser update, warm-started, with inexact gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxmgrit._checks import check_backend, check_solver
from jaxmgrit._pytree import copies, merge, split
from jaxmgrit.backend.local import Local
from jaxmgrit.solvers.mgrit.solver import MGRIT
from jaxmgrit.solvers.result import Result, worse
from jaxmgrit.solvers.sequential import match_segments
from jaxmgrit.training.common import Extra
from jaxmgrit.training.objective import Training
from jaxmgrit.training.optimizer_state import init_optimizer, layer_axes, update_optimizer
from jaxmgrit.training.schedules.base import Schedule, Setting, check_schedule
from jaxmgrit.training.schedules.cycles_then_gradient import CyclesThenGradient
from jaxmgrit.training.snapshot import Snapshot, export, restore
from jaxmgrit.training.state import Info, TrainState
from jaxmgrit.training.warm import SAME, UNKNOWN, Opening, fingerprint, put, repeated, take

if TYPE_CHECKING:
    from jaxmgrit.backend.base import Backend
    from jaxmgrit.solvers.base import Solver
    from jaxmgrit.training.problem import Params, Problem

PyTree = Any


@dataclass(frozen=True)
class OneShot:
    """Simultaneous training on a fixed batch: state, adjoint and parameters converge together.

    Args:
        problem: what is trained.
        optimizer: any optax transformation. Integer and key leaves of the parameters are left alone.
        solver: `MGRIT(cycles=1)` by default; a few cycles are for a fixed batch, many are conventional training.
        adjoint: likewise.
        schedule: `CyclesThenGradient()` (the default, as published) or `PredictThenSweep()`.
        backend: where the layers live, `Local()` by default.
        start: where the cycles of a step start from.
            "warm": where the last step on the same samples ended. The batch is the one given to `init`, whole, or those
            of its samples that `step(..., samples=...)` names. Another batch is noticed by a fingerprint: the
            step's result is then `Result.OTHER_BATCH`, at which `check` raises.
            "samples": likewise, and every step must name its samples.
            "cold": from the default guess, and nothing is kept: for batches that do not come again as they were (random
            augmentation, more data than memory, a key per iteration), of any size. With few cycles,
            `MGRIT(skip_first_down=True)` gives such a start a first coarse solve.

    Raises:
        TypeError, ValueError: an option is not what it should be; the message names it.

    Warm values belong to the samples they were computed for, and to one draw of a random layer.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxmgrit as jm
        >>> problem = jm.Problem(
        ...     opening=lambda p, x: x @ p,
        ...     step=lambda p, u, h: u + h * jnp.tanh(u @ p),
        ...     loss=lambda p, u, y: (jnp.mean((u @ p - y) ** 2), None),
        ...     h=1 / 64,
        ... )
        >>> params = jm.Params(jnp.ones((2, 4)), 0.1 * jnp.ones((64, 4, 4)), jnp.ones((4, 1)))
        >>> batch = (jnp.ones((8, 2)), jnp.zeros((8, 1)))
        >>> trainer = jm.OneShot(problem, optax.adam(1e-2))
        >>> state = trainer.init(params, batch)
        >>> update = jax.jit(trainer.step, donate_argnums=0)
        >>> for _ in range(3):
        ...     state, info = update(state, batch)

    Source: Guenther et al. 2020 (arXiv 1812.04352), section 3.4.
    """

    problem: Problem
    optimizer: optax.GradientTransformation
    solver: Solver | None = None
    adjoint: Solver | None = None
    schedule: Schedule = CyclesThenGradient()
    backend: Backend = Local()
    start: Literal["warm", "cold", "samples"] = "warm"

    def __post_init__(self) -> None:
        check_schedule(self.schedule, "OneShot: schedule")
        for name in ("solver", "adjoint"):
            if getattr(self, name) is not None:
                check_solver(f"OneShot: {name}", getattr(self, name))
        check_backend(self.backend, "OneShot: backend")
        if self.start not in ("warm", "cold", "samples"):
            raise ValueError(f"OneShot: start={self.start!r} is unknown; choose 'warm', 'cold' or 'samples'.")
        if not hasattr(self.optimizer, "update"):
            raise TypeError(
                f"OneShot: optimizer={self.optimizer!r} is not an optax transformation, such as optax.adam(1e-2)."
            )

    @property
    def training(self) -> Training:
        """What this trainer shares with others: objective and inexact gradient at laid-out parameters."""
        one_cycle = MGRIT(cycles=1)
        # A `Sequential` of open segments ends them where its partner's intervals end.
        solver, adjoint = match_segments(self.solver or one_cycle, self.adjoint or one_cycle)
        return Training(self.problem, self.schedule, Setting(solver, adjoint, self.backend))

    def init(self, params: Params, batch: tuple[Any, Any]) -> TrainState:
        """The state before the first iteration: copies of the parameters, cold warm values.

        Args:
            params: initial parameters.
            batch: (x, y), the whole training set.

        Raises:
            TypeError, ValueError: parameters, batch and problem that do not fit together, or values that are not
                finite.
        """
        training = self.training
        start = training.start(params, batch)
        storage = training.storage(start.layers)
        # Copies: some optimisers keep the parameters themselves, and no buffer may be donated twice.
        optimizer = copies(init_optimizer(self.optimizer, split(params)[0], storage))
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
        """The axis over the layers of every leaf of the optimiser's state."""
        shapes = self.training.storage(state.layers).shapes(split(state.params)[0])
        return layer_axes(self.optimizer.init, shapes, state.layers)

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

    def opening_values(
        self, state: TrainState, batch: tuple[Any, Any], samples: jax.Array | None = None, key: Any = None
    ) -> Opening:
        """The warm values that a step on this batch starts from; arguments as in `step`.

        Raises:
            ValueError: `samples` or `key` do not go with `start`, or with the backend.
        """
        training, layers = self.training, state.layers
        # Sequential solvers keep no warm values: with them a key per iteration does no harm.
        if key is not None and self.start != "cold" and jax.tree.leaves(state.warm):
            raise ValueError(
                f"key: warm values belong to one draw of the random layers, but start={self.start!r} keeps them from "
                "step to step; with a key per iteration take jm.OneShot(start='cold')."
            )
        if samples is None and self.start == "samples":
            raise ValueError("samples: with start='samples' every step names those that its batch consists of.")
        if samples is not None and self.start == "cold":
            raise ValueError("samples: with start='cold' no sample's values are kept; leave samples out.")
        if samples is not None and self.backend.batch_parts > 1:
            raise ValueError(
                "samples: with the batch split over MPI ranks, warm values are kept for a fixed batch only; take "
                "jm.OneShot(start='cold'), MPI(data=1), or a Mesh with a data axis."
            )
        if self.start == "cold":
            return Opening(training.cold(state.params, state.warm, batch, layers), SAME, state.batch)
        if samples is None:
            return training.opening_of(state.warm, state.batch, batch)
        code = jnp.where(repeated(samples), Result.REPEATED_SAMPLES.value, SAME).astype(jnp.int32)
        return Opening(take(state.warm, samples), code, state.batch)

    def step(
        self,
        state: TrainState,
        batch: tuple[Any, Any],
        samples: jax.Array | None = None,
        *,
        context: PyTree = None,
        key: Any = None,
    ) -> tuple[TrainState, Info]:
        """One iteration: inexact loss and gradient, one optimiser update.

        Pure; jit it once outside the loop: `jax.jit(trainer.step, donate_argnums=0)`.

        Args:
            state: from `init` or the last `step`.
            batch: (x, y), the same as in `init`, or those of its samples that `samples` names; any with start="cold".
            samples: which samples of the batch given to `init` these are, distinct integers of shape (batch,); the
                leading axis of every leaf of a state must be that of the samples. None: all of them, in order.
            context: what the batch comes with (masks, conditioning), any pytree, see `Common`.
            key: this iteration's, for random layers (dropout, stochastic depth), see `Common`.

        Returns:
            The next state, and `Info` about this one. Its result is `Result.NOT_FINITE` if there is no such sample,
            `Result.REPEATED_SAMPLES` or `Result.OTHER_BATCH` where samples are mixed up.

        Raises:
            ValueError: `samples` under `MPI(data=...)`, where a rank has the warm values of its part of them only, or
                with start="cold", or none with start="samples"; `key` where warm values are kept.
        """
        training, layers, extra = self.training, state.layers, Extra(context, key)
        opening = self.opening_values(state, batch, samples, key)
        here = training.evaluate(state.params, opening.warm, batch, layers, extra)
        seen = training.trainable(state.params, layers)
        updates, optimizer = update_optimizer(
            self.optimizer,
            here.gradients,
            state.optimizer,
            seen,
            training.storage(layers),
            here.objective,
            # Trials along a line start from the states that this iteration has found.
            training.objective_of(split(state.params)[1], here.found.warm, batch, layers, extra),
        )
        # An optimiser may move what has gradient 0 (adding noise, say); padding stays where it is.
        updates = updates._replace(layers=training.mask(updates.layers, layers))
        differentiable, others = split(state.params)
        params = training.place(merge(optax.apply_updates(differentiable, updates), others))
        found = here.found
        info = Info(
            found.head.loss,
            found.head.aux,
            here.objective,
            training.norm(here.gradients),
            found.residual_norm,
            found.adjoint_residual_norm,
            worse(here.result, opening.result),
            jnp.asarray(found.mismatch),
        )
        warm = found.warm if samples is None else training.place_warm(put(state.warm, samples, found.warm))
        warm = training.carried(warm) if self.start == "cold" else warm
        # Placed as by `init`: under `jit` another placement would be another program.
        iteration = self.backend.replicate(state.iteration + 1)
        return TrainState(params, optimizer, warm, iteration, layers, opening.batch), info
