"""One-shot training's "predict, then sweep": two coarse solves and one fused sweep an iteration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmgrit._checks import is_real
from jaxmgrit._pytree import all_finite, euclidean_norm, real_dtype, repeat
from jaxmgrit.solvers.mgrit.solver import MGRIT
from jaxmgrit.solvers.result import Result
from jaxmgrit.training.schedules.base import Found, LossHead, Setting, mismatch
from jaxmgrit.training.schedules.prediction import predict_program, sweep_program

if TYPE_CHECKING:
    from jaxmgrit._types import State, Warm
    from jaxmgrit.system.network import Network
    from jaxmgrit.system.partition import Level

PyTree = Any


@dataclass(frozen=True)
class PredictThenSweep:
    """The coarse problem predicts state and adjoint at the new parameters; one fused sweep corrects and differentiates.

    The FAS right-hand sides of the last sweep are kept for state and adjoint (tau, sigma). An iteration solves the
    coarse problems with them (two levels: by one coarse recurrence each; more: by `cycles` cycles on the coarse
    levels), then runs one sweep over all intervals that gives the parameters' gradients and the mismatches tau and
    sigma are updated by. It costs little more than a sequential gradient on one device, and all of the sweep is
    parallel. Its fixed points are those of the exact method.

    Choose it for one-shot training at large N: for layers that start smooth in depth with `coarse_params=average`,
    `coarse_step=midpoint` and `optax.chain(anticipate(alpha), ...)`, for independent ones with
    `coarse_params=all_layers`, `coarse_step=picard(2)` and no anticipation. Of the solvers it takes the hierarchy, the
    coarse step and the number of coarse cycles; it has no relaxation on the finest level, no tolerances and no skipped
    cycle.

    Args:
        moving_average: 0 <= beta < 1, for batches that start cold: tau then is the same for all samples, the moving
            average over iterations (beta times the last, 0.8 say) of the batch's mean of the mismatch, kept from batch
            to batch by `OneShot.cold`, and sigma is 0. The leading axis of a state is the samples'. None: tau and sigma
            belong to the samples.

    Raises:
        TypeError, ValueError: moving_average is not a number in [0, 1).

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> loss = lambda p, u, y: (jnp.mean((u - y) ** 2), None)
        >>> problem = jm.Problem(lambda p, x: x @ p, step, loss, h=0.1)
        >>> params = jm.Params(jnp.eye(2), 0.1 * jnp.ones((16, 2, 2)), ())
        >>> batch = (jnp.ones((3, 2)), jnp.zeros((3, 2)))
        >>> smooth = jm.MGRIT(4, levels=2, coarse_params=jm.average, coarse_step=jm.midpoint)
        >>> trainer = jm.OneShot(problem, optax.sgd(0.1), smooth, smooth, jm.PredictThenSweep())
        >>> state, info = jax.jit(trainer.step)(trainer.init(params, batch), batch)
    """

    moving_average: float | None = None

    def __post_init__(self) -> None:
        beta = self.moving_average
        if beta is None:
            return
        if not is_real(beta):
            raise TypeError(f"PredictThenSweep: moving_average={beta!r} is not a number; give 0.8, say, or None.")
        if not 0 <= beta < 1:
            raise ValueError(f"PredictThenSweep: moving_average={beta} is not in [0, 1); give 0.8, say, or None.")

    def level(self, layers: int, setting: Setting) -> Level:
        """The partition the layers are kept in."""
        return self._levels(layers, setting)[0][0]

    def _levels(self, layers: int, setting: Setting) -> tuple[tuple[Level, ...], tuple[Level, ...]]:
        for name, solver in (("solver", setting.solver), ("adjoint", setting.adjoint)):
            if not isinstance(solver, MGRIT):
                raise ValueError(
                    f"PredictThenSweep: {name}={solver} has no coarse level; give jm.MGRIT(...), "
                    "or take schedule=jm.CyclesThenGradient() for sequential training."
                )
            # Ragged: an incomplete interval has a coarse step too, so that the coarse problem alone reaches u^N.
            two_levels = len(solver.hierarchy(layers, setting.backend.size, ragged=True)) == 2
            _refuse_idle_options(name, solver, two_levels)
        # Not `front=True` for the adjoint: one fused sweep serves both, so both have the state's intervals.
        state, adjoint = (
            s.hierarchy(layers, setting.backend.size, ragged=True) for s in (setting.solver, setting.adjoint)
        )
        if len(state) < 2 or state[0] != adjoint[0]:
            raise ValueError(
                f"PredictThenSweep: {layers} layers give the state {len(state)} level(s) with {state[0].factor} layers "
                f"per interval and the adjoint {len(adjoint)} with {adjoint[0].factor}; both need at least two levels "
                "and the same intervals: use one coarsening factor for both, smaller than the number of layers."
            )
        return state, adjoint

    def init(self, layers: int, u0: State, setting: Setting) -> tuple[PyTree, ...]:
        """Warm values: no right-hand sides yet; with more than two levels also guesses for the coarse problems."""
        levels = self._levels(layers, setting)
        count = levels[0][0].intervals

        def zeros() -> PyTree:
            return jax.tree.map(jnp.zeros_like, repeat(u0, count))

        # With two levels the coarse problem is solved exactly: a guess would be carried in vain.
        guess = repeat(u0, count) if len(levels[0]) > 2 else None
        return zeros(), zeros(), guess, zeros() if len(levels[1]) > 2 else None

    def cold(self, warm: tuple[PyTree, ...], layers: int, u0: State, setting: Setting) -> tuple[PyTree, ...]:
        """Warm values for another batch: as from `init`, but a moving average goes on."""
        tau, *rest = self.init(layers, u0, setting)
        if self.moving_average is not None:
            # One sample's is everyone's, whatever the number of samples.
            own = jax.tree.map(lambda x: x[:, :1] if x.ndim > 1 else x, warm[0])
            tau = jax.tree.map(lambda x, y: jnp.broadcast_to(y, x.shape), tau, own)
        return tau, *rest

    def carried(self, warm: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        """Of warm values what a cold start takes over: the moving average."""
        return (warm[0] if self.moving_average is not None else None, None, None, None)

    def warm_levels(self, layers: int, setting: Setting) -> tuple[Level, ...]:
        """The partitions the warm values belong to, one for each entry of `warm`."""
        return (self.level(layers, setting),) * 4

    def gradient(self, network: Network, u0: State, head: LossHead, warm: Warm, setting: Setting) -> Found:
        """Predict the state, loss, predict the adjoint, one fused sweep."""
        solver, adjoint, backend = setting
        state_levels, adjoint_levels = self._levels(network.layers, setting)
        if network.equation.h is not None or network.shared.h is not None:
            network = _step_size_per_layer(network, state_levels, u0)
        equations = network.with_coarse_step(solver), network.with_coarse_step(adjoint)
        slots = network.on(state_levels[0], backend)
        tau, sigma, guess, lam_guess = warm

        predict = predict_program(equations[0], state_levels, adjoint_levels, solver, adjoint, backend)
        predicted, u_final = predict(slots, u0, network.shared, warm)
        top = head(u_final)
        norms = tuple(getattr(s, "norm", None) or euclidean_norm for s in (solver, adjoint))
        sweep = sweep_program(equations[1], state_levels, adjoint_levels, adjoint, backend, norms, self.moving_average)
        swept = sweep(slots, u0, network.shared, predicted, tau, sigma, top.lam_final)

        finite = backend.data_total((~all_finite((u_final, swept.lam_initial))).astype(jnp.int32)) == 0
        # There is no tolerance to be met, so this is never CONVERGED.
        result = jnp.where(finite, Result.CYCLES_USED_UP.value, Result.NOT_FINITE.value).astype(jnp.int32)
        # Only what `init` has made is handed on: a loop over iterations carries one structure.
        ends, lam_ends = (None if g is None else e for g, e in ((guess, swept.ends), (lam_guess, swept.lam_ends)))
        gradients = swept.gradients
        residuals = swept.residual_norm, swept.adjoint_residual_norm
        warm = (swept.tau, swept.sigma, ends, lam_ends)
        missed, shared = mismatch(residuals, swept.sizes), gradients.shared.given.params
        slots = gradients.slots.theta
        return Found(top, slots, swept.lam_initial, gradients.cost, *residuals, result, warm, shared, missed)


def _refuse_idle_options(name: str, solver: MGRIT, two_levels: bool) -> None:
    """Raise a ValueError for an option that would change nothing: tolerances, relaxation on the finest level, ..."""
    idle: dict[str, tuple[bool, object]] = {
        "rtol": (solver.rtol is not None, None),
        "atol": (solver.atol is not None, None),
        "skip_first_down": (solver.skip_first_down, False),
        "cf_relaxations": (solver.cf_relaxations[0] != 0 or (two_levels and solver.cf_relaxations[1] != 1), (0, 1)),
        # With two levels the coarse problem is solved exactly, by one recurrence; both usual defaults are borne.
        "cycle": (two_levels and solver.cycle != "V", "V"),
        "cycles": (two_levels and solver.cycles > 2, 1),
    }
    for option, (given, default) in idle.items():
        if given:
            where = " with two levels" if option in ("cycle", "cycles", "cf_relaxations") and two_levels else ""
            raise ValueError(
                f"PredictThenSweep: {name} has {option}={getattr(solver, option)!r}, which this schedule cannot "
                f"honour{where}; leave it at {default!r}, or take schedule=jm.CyclesThenGradient()."
            )


def _step_size_per_layer(network: Network, levels: tuple[Level, ...], u0: State) -> Network:
    """Incomplete intervals have a shorter coarse step; where there are any, one scalar h will not do."""
    # The coarsest level is left out: nothing is made of its intervals.
    if all(level.steps % level.factor == 0 for level in levels[:-1]):
        return network
    # Exactly one of equation, slots and shared holds the step size: it moves to the slots.
    h = network.equation.h if network.equation.h is not None else network.shared.h
    per_layer = jnp.full((network.layers,), h, real_dtype(u0))
    return replace(
        network,
        equation=replace(network.equation, h=None),
        slots=network.slots._replace(h=per_layer),
        shared=network.shared._replace(h=None),
    )
