"""One-shot training's "predict, then sweep": two coarse solves and one fused sweep an iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmgrit._programs import cached
from jaxmgrit._pytree import add, all_finite, euclidean_norm, fit, fold, real_dtype, repeat, subtract, where
from jaxmgrit.adjoint import GRADIENT_SPECS
from jaxmgrit.backend.base import REPLICATED, SHARDED, SHARDED_STATES, STATE, WHOLE_STATES, Backend, broadcast
from jaxmgrit.backend.local import LOCAL
from jaxmgrit.solvers.mgrit.cycle import Grids, solve_level
from jaxmgrit.solvers.mgrit.fas import Norm, own_sum
from jaxmgrit.solvers.mgrit.grids import adjoint_grids, coarse_blocks, grids_of, sweep_batch
from jaxmgrit.solvers.mgrit.solver import MGRIT
from jaxmgrit.solvers.result import Result
from jaxmgrit.system.fused_sweep import Gradients, vjp_sweep
from jaxmgrit.system.grid import Grid, entry
from jaxmgrit.system.linearise import Linearisation
from jaxmgrit.system.network import Network
from jaxmgrit.system.partition import Level, fine_grid_data
from jaxmgrit.system.step import Equation, Slot
from jaxmgrit.training.schedules.base import Found, LossHead, Setting

PyTree = Any


@dataclass(frozen=True)
class PredictThenSweep:
    """The coarse problem predicts state and adjoint at the new parameters; one fused sweep corrects and differentiates.

    The FAS right-hand sides of the last sweep are kept for state and adjoint (tau, sigma). An iteration solves the
    coarse problems with them (two levels: by one coarse recurrence each; more: by `cycles` cycles on the coarse
    levels), then runs one sweep over all intervals that gives the parameters' gradients and the mismatches tau and
    sigma are updated by. It costs little more than a sequential gradient on one device, and all of the sweep is
    parallel. Its fixed points are those of the exact method.

    Choose it for one-shot training at large N, with layers that start smooth in depth, `coarse_params=average`,
    `coarse_step=midpoint` and `optax.chain(anticipate(alpha), ...)`. Of the solvers it takes the hierarchy, the coarse
    step and the number of coarse cycles; it has no relaxation on the finest level, no tolerances and no skipped cycle.
    """

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
            two_levels = len(solver.hierarchy(layers, setting.backend.size, ragged=True)) == 2
            _refuse_idle_options(name, solver, two_levels)
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

    def init(self, layers: int, u0: PyTree, setting: Setting) -> tuple[PyTree, ...]:
        """Warm values: no right-hand sides yet; with more than two levels also guesses for the coarse problems."""
        levels = self._levels(layers, setting)
        count = levels[0][0].intervals

        def zeros() -> PyTree:
            return jax.tree.map(jnp.zeros_like, repeat(u0, count))

        guess = repeat(u0, count) if len(levels[0]) > 2 else None
        return zeros(), zeros(), guess, zeros() if len(levels[1]) > 2 else None

    def warm_levels(self, layers: int, setting: Setting) -> tuple[Level, ...]:
        """The partitions the warm values belong to, one for each entry of `warm`."""
        return (self.level(layers, setting),) * 4

    def gradient(self, network: Network, u0: PyTree, head: LossHead, warm: PyTree, setting: Setting) -> Found:
        """Predict the state, loss, predict the adjoint, one fused sweep."""
        solver, adjoint, backend = setting
        state_levels, adjoint_levels = self._levels(network.layers, setting)
        if network.equation.h is not None or network.shared.h is not None:
            network = _step_size_per_layer(network, state_levels, u0)
        equations = network.with_coarse_step(solver), network.with_coarse_step(adjoint)
        slots = network.on(state_levels[0], backend)
        tau, sigma, guess, lam_guess = warm

        predict = _predict_program(equations[0], state_levels, adjoint_levels, solver, adjoint, backend)
        predicted, u_final = predict(slots, u0, network.shared, warm)
        top = head(u_final)
        norms = tuple(getattr(s, "norm", None) or euclidean_norm for s in (solver, adjoint))
        sweep = _sweep_program(equations[1], state_levels, adjoint_levels, adjoint, backend, norms)
        swept = sweep(slots, u0, network.shared, predicted, tau, sigma, top.lam_final)

        finite = backend.data_total((~all_finite((u_final, swept.lam_initial))).astype(jnp.int32)) == 0
        result = jnp.where(finite, Result.CYCLES_USED_UP.value, Result.NOT_FINITE.value).astype(jnp.int32)
        ends, lam_ends = (None if g is None else e for g, e in ((guess, swept.ends), (lam_guess, swept.lam_ends)))
        found = swept.gradients
        residuals = swept.residual_norm, swept.adjoint_residual_norm
        warm = (swept.tau, swept.sigma, ends, lam_ends)
        return Found(top, found.slots.theta, swept.lam_initial, found.cost, *residuals, result, warm)


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


def _step_size_per_layer(network: Network, levels: tuple[Level, ...], u0: PyTree) -> Network:
    """Incomplete intervals have a shorter coarse step; where there are any, one scalar h will not do."""
    if all(level.steps % level.factor == 0 for level in levels[:-1]):
        return network
    h = network.equation.h if network.equation.h is not None else network.shared.h
    per_layer = jnp.full((network.layers,), h, real_dtype(u0))
    return replace(
        network,
        equation=replace(network.equation, h=None),
        slots=network.slots._replace(h=per_layer),
        shared=network.shared._replace(h=None),
    )


class Predicted(NamedTuple):
    """The solved coarse problem of the state, and what that of the adjoint needs, all on level 1.

    What level 1 needs of the finest is gathered once, in one message.

    Attributes:
        values: the state after every coarse slot.
        blocks: slots of the adjoint's coarse levels.
        sigma: right-hand side of the adjoint.
        lam_guess: the adjoint's guess, or None.
    """

    values: PyTree
    blocks: tuple[Slot, ...]
    sigma: PyTree
    lam_guess: PyTree


class Swept(NamedTuple):
    """What the fused sweep leaves."""

    tau: PyTree
    sigma: PyTree
    ends: PyTree
    lam_ends: PyTree
    lam_initial: PyTree
    gradients: Gradients
    residual_norm: jax.Array
    adjoint_residual_norm: jax.Array


def _coarse_problem(grids: Grids, solver: MGRIT, guess: PyTree, rhs: PyTree, initial: PyTree) -> PyTree:
    """The values at all coarse slots: exact with two levels, else by cycles."""
    rhs = fold(rhs, grids[1].level.factor)
    if len(grids) == 2:
        return solve_level(grids, 1, solver, None, rhs, initial)

    def one(values: PyTree, _: None) -> tuple[PyTree, None]:
        return solve_level(grids, 1, solver, values, rhs, initial), None

    return jax.lax.scan(one, guess, None, length=solver.cycles)[0]


def _edge(fine: Grid, coarse: Level, values: PyTree, initial: PyTree) -> PyTree:
    """The value that enters this device's intervals, where the values after all coarse slots are known on it."""
    if coarse.devices > 1 or fine.backend.size == 1:
        return None
    share, last = fine.level.share, coarse.steps - 1
    at = (fine.backend.index() + 1) * share if fine.backward else fine.backend.index() * share - 1
    return where((at < 0) | (at > last), initial, entry(values, jnp.clip(at, 0, last)))


def _specs(levels: tuple[Level, ...]) -> Any:
    """What values and blocks of the coarse levels are."""
    states = SHARDED_STATES if levels[1].devices > 1 else WHOLE_STATES
    return states, tuple(SHARDED if level.devices > 1 else REPLICATED for level in levels[1:])


@cached
def _predict_program(
    equation: Equation,
    levels: tuple[Level, ...],
    adjoint_levels: tuple[Level, ...],
    solver: MGRIT,
    adjoint: MGRIT,
    backend: Backend,
) -> Callable[..., tuple[Predicted, PyTree]]:
    level, coarse = levels[:2]
    same = levels == adjoint_levels and solver.coarse_params == adjoint.coarse_params

    def body(slots: PyTree, u0: PyTree, shared: PyTree, warm: PyTree) -> tuple[Predicted, PyTree]:
        tau, sigma, guess, lam_guess = warm
        block = fold(slots, level.factor)
        beside = (tau, guess), (sigma, lam_guess)
        if same:
            blocks, (own, reverse) = coarse_blocks(block, levels, solver, backend, beside)
            lam_blocks = blocks
        else:
            blocks, own = coarse_blocks(block, levels, solver, backend, beside[0])
            lam_blocks, reverse = coarse_blocks(block, adjoint_levels, adjoint, backend, beside[1])
        batch = sweep_batch(solver, u0, backend.platform, level.share)
        grids = grids_of(equation, (block, *blocks), shared, levels, backend, batch)
        values = _coarse_problem(grids, solver, own[1], own[0], u0)
        if coarse.devices > 1:
            device, here = divmod(level.last_interval, level.share)
            u_final = broadcast(backend, entry(fine_grid_data(values, level, coarse, backend), here), device)
        else:
            u_final = entry(values, level.last_interval)
        return Predicted(values, lam_blocks, *reverse), u_final

    states, _ = _specs(levels)
    lam_states, lam_blocks = _specs(adjoint_levels)
    return backend.lift(
        body,
        (SHARDED, STATE, REPLICATED, SHARDED_STATES),
        (Predicted(states, lam_blocks, lam_states, lam_states), STATE),
    )


@cached
def _sweep_program(
    equation: Equation,
    state_levels: tuple[Level, ...],
    levels: tuple[Level, ...],
    solver: MGRIT,
    backend: Backend,
    norms: tuple[Norm, Norm],
) -> Callable[..., Swept]:
    level = levels[0]

    def finish(arrived: PyTree, lam: PyTree, ends: PyTree) -> tuple[PyTree, PyTree]:
        mismatch = subtract((arrived, lam), ends)
        return tuple(norm(r) ** 2 for norm, r in zip(norms, mismatch, strict=True)), mismatch

    def known(values: PyTree, u0: PyTree) -> PyTree:
        """The states before the adjoint's coarse slots, where those after the state's are known on every device."""
        if backend.size == 1 or state_levels[1].devices > 1 or levels[1].devices > 1:
            return None
        before = LOCAL.shift(values, 1, u0)
        return fold(fit(before, levels[1].slots, levels[1].front), levels[1].factor)

    def body(
        slots: PyTree,
        u0: PyTree,
        shared: PyTree,
        predicted: Predicted,
        tau: PyTree,
        sigma: PyTree,
        lam_final: PyTree,
    ) -> Swept:
        batch = sweep_batch(solver, u0, backend.platform, level.share)
        blocks = (fold(slots, level.factor), *predicted.blocks)
        forward = grids_of(equation, blocks, shared, levels, backend, batch)
        ends = fine_grid_data(predicted.values, level, state_levels[1], backend)
        starts = forward[0].starts(ends, u0, _edge(forward[0], state_levels[1], predicted.values, u0))
        grids = adjoint_grids(equation, forward, shared, Linearisation(starts), known(predicted.values, u0))
        values = _coarse_problem(grids, solver, predicted.lam_guess, predicted.sigma, lam_final)
        lam_ends = fine_grid_data(values, level, levels[1], backend)
        edge = _edge(grids[0], levels[1], values, lam_final)
        beside, total = (ends, lam_ends), (tau, sigma)
        gradients, squares, updated = vjp_sweep(
            equation, grids[0], shared, 0, lam_ends, lam_final, False, finish, beside, total, edge
        )
        # What the adjoint of the first interval arrived at.
        lam_initial = add(entry(lam_ends, 0), subtract(entry(updated[1], 0), entry(sigma, 0)))
        lam_initial = where(backend.index() == 0, lam_initial, jax.tree.map(jnp.zeros_like, lam_initial))
        own = [own_sum(grids[0], x).astype(real_dtype(u0)) for x in squares]
        own, (rest, cost), lam_initial = backend.all_sum((own, (gradients.shared, gradients.cost), lam_initial))
        own, gradients = backend.data_sum((own, Gradients(gradients.slots, rest, cost)))
        residual, adjoint_residual = (jnp.sqrt(x) for x in own)
        return Swept(updated[0], updated[1], ends, lam_ends, lam_initial, gradients, residual, adjoint_residual)

    states, whole = SHARDED_STATES, (REPLICATED, REPLICATED)
    predicted = Predicted(_specs(state_levels)[0], _specs(levels)[1], *(_specs(levels)[0],) * 2)
    in_specs = (SHARDED, STATE, REPLICATED, predicted, states, states, STATE)
    out_specs = Swept(states, states, states, states, STATE, GRADIENT_SPECS, *whole)
    return backend.lift(body, in_specs, out_specs)
