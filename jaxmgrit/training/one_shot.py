"""One-shot training: a few cycles per optimiser update, warm-started, with inexact gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from jaxmgrit._checks import describe
from jaxmgrit._pytree import merge, split
from jaxmgrit.backend.local import Local
from jaxmgrit.solvers.mgrit.solver import MGRIT
from jaxmgrit.solvers.result import Result, worse
from jaxmgrit.training.common import Extra
from jaxmgrit.training.optimizer_state import update_optimizer
from jaxmgrit.training.schedules.base import Schedule, check_schedule
from jaxmgrit.training.schedules.cycles_then_gradient import CyclesThenGradient
from jaxmgrit.training.state import Info, TrainState
from jaxmgrit.training.trainer import Trainer
from jaxmgrit.training.warm import SAME, Opening, put, repeated, take

if TYPE_CHECKING:
    from jaxmgrit.backend.base import Backend
    from jaxmgrit.solvers.base import Solver
    from jaxmgrit.training.objective import Training
    from jaxmgrit.training.problem import Problem
    from jaxmgrit.training.state import Params

PyTree = Any


@dataclass(frozen=True)
class OneShot(Trainer):
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
    _starts: ClassVar[tuple[str, ...]] = ("warm", "cold", "samples")

    def __post_init__(self) -> None:
        check_schedule(self.schedule, "OneShot: schedule")
        self._check_options()
        if not hasattr(self.optimizer, "update"):
            raise TypeError(
                f"OneShot: optimizer={self.optimizer!r} is not an optax transformation, such as optax.adam(1e-2)."
            )

    @property
    def training(self) -> Training:
        """What this trainer shares with others: objective and inexact gradient at laid-out parameters."""
        return self._training(MGRIT(cycles=1), self.schedule)

    @property
    def _first_memory(self) -> Callable[[Params], PyTree]:
        return self.optimizer.init

    def opening_values(
        self, state: TrainState, batch: tuple[Any, Any], samples: jax.Array | None = None, key: Any = None
    ) -> Opening:
        """The warm values that a step on this batch starts from; arguments as in `step`.

        Raises:
            ValueError: `samples` or `key` do not go with `start`, or with the backend.
        """
        self._check_key(state, key)
        if samples is None and self.start == "samples":
            raise ValueError("samples: with start='samples' every step names those that its batch consists of.")
        if samples is not None and self.start == "cold":
            raise ValueError("samples: with start='cold' no sample's values are kept; leave samples out.")
        if samples is not None and not (
            jnp.ndim(samples) == 1 and jnp.issubdtype(jnp.result_type(samples), jnp.integer)
        ):
            raise TypeError(
                f"samples is {describe(samples)}; give the samples' numbers, distinct integers of shape (batch,)."
            )
        if samples is not None and self.backend.batch_parts > 1:
            raise ValueError(
                "samples: with the batch split over MPI ranks, warm values are kept for a fixed batch only; take "
                "jm.OneShot(start='cold'), MPI(data=1), or a Mesh with a data axis."
            )
        if samples is None:
            return self._opening(state, batch)
        # Not the fingerprint's code: the samples of one step are another batch than all of them.
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
        evaluated = training.evaluate(state.params, opening.warm, batch, layers, extra)
        seen = training.trainable(state.params, layers)
        updates, optimizer = update_optimizer(
            self.optimizer,
            evaluated.gradients,
            state.optimizer,
            seen,
            training.storage(layers),
            evaluated.objective,
            # Trials along a line start from the states that this iteration has found.
            training.objective_of(split(state.params)[1], evaluated.solved.warm, batch, layers, extra),
        )
        # An optimiser may move what has gradient 0 (adding noise, say); padding stays where it is.
        updates = updates._replace(layers=training.mask(updates.layers, layers))
        differentiable, others = split(state.params)
        params = training.place(merge(optax.apply_updates(differentiable, updates), others))
        solved = evaluated.solved
        info = Info(
            solved.head.loss,
            solved.head.aux,
            evaluated.objective,
            training.norm(evaluated.gradients),
            solved.residual_norm,
            solved.adjoint_residual_norm,
            worse(evaluated.result, opening.result),
            jnp.asarray(solved.mismatch),
        )
        warm = solved.warm if samples is None else training.place_warm(put(state.warm, samples, solved.warm))
        warm = training.carried(warm) if self.start == "cold" else warm
        # Placed as by `init`: under `jit` another placement would be another program.
        iteration = self.backend.replicate(state.iteration + 1)
        return TrainState(params, optimizer, warm, iteration, layers, opening.batch), info
