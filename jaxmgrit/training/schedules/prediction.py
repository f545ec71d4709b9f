"""The two programs of "predict, then sweep": the coarse problems, and the fused sweep between and after them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmgrit._programs import cached
from jaxmgrit._pytree import add, euclidean_norm, fit, fold, norm_dtype, real_dtype, subtract, where
from jaxmgrit.backend.base import REPLICATED, SHARDED, SHARDED_STATES, STATE, WHOLE_STATES, Backend, broadcast
from jaxmgrit.backend.local import LOCAL
from jaxmgrit.solvers.mgrit.cycle import Grids, solve_level
from jaxmgrit.solvers.mgrit.fas import Norm, own_sum
from jaxmgrit.solvers.mgrit.grids import adjoint_grids, coarse_blocks, grids_of, sweep_batch
from jaxmgrit.system.fused_sweep import Gradients, vjp_sweep
from jaxmgrit.system.grid import Grid, entry
from jaxmgrit.system.linearise import AdjointBlock, Linearisation, record_all
from jaxmgrit.system.partition import Level, fine_grid_data
from jaxmgrit.system.step import SHARED_SPECS, Equation, Shared, Slot, Vjp
from jaxmgrit.verbs.adjoint import GRADIENT_SPECS

if TYPE_CHECKING:
    from jaxmgrit._types import Layers, State, Warm
    from jaxmgrit.solvers.mgrit.solver import MGRIT

PyTree = Any


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
    sizes: tuple[jax.Array, jax.Array]


def _coarse_problem(grids: Grids, solver: MGRIT, guess: State, rhs: State, initial: State) -> PyTree:
    """The values at all coarse slots: exact with two levels, else by cycles."""
    # (slots, ...) to (share, factor, ...), as sweeps over the coarse level's intervals take it.
    rhs = fold(rhs, grids[1].level.factor)
    if len(grids) == 2:
        return solve_level(grids, 1, solver, None, rhs, initial)

    def one(values: State, _: None) -> tuple[PyTree, None]:
        return solve_level(grids, 1, solver, values, rhs, initial), None

    # A loop, so that the program does not grow with the number of cycles.
    return jax.lax.scan(one, guess, None, length=solver.cycles)[0]


def _edge(fine: Grid, coarse: Level, values: State, initial: State) -> PyTree:
    """The value that enters this device's intervals, where the values after all coarse slots are known on it."""
    # None: the grid finds it, by a message if need be. Coarse values that are whole everywhere save that one.
    if coarse.devices > 1 or fine.backend.size == 1:
        return None
    share, last = fine.level.share, coarse.steps - 1
    # The coarse slot next to this device's share, on the side the run comes from; beyond either end it is C-point 0.
    at = (fine.backend.index() + 1) * share if fine.backward else fine.backend.index() * share - 1
    return where((at < 0) | (at > last), initial, entry(values, jnp.clip(at, 0, last)))


def _specs(levels: tuple[Level, ...]) -> Any:
    """What values and blocks of the coarse levels are."""
    states = SHARDED_STATES if levels[1].devices > 1 else WHOLE_STATES
    return states, tuple(SHARDED if level.devices > 1 else REPLICATED for level in levels[1:])


@cached
def predict_program(
    equation: Equation,
    levels: tuple[Level, ...],
    adjoint_levels: tuple[Level, ...],
    solver: MGRIT,
    adjoint: MGRIT,
    backend: Backend,
) -> Callable[..., tuple[Predicted, PyTree]]:
    """The first program: the state's coarse problem, and what the adjoint's needs of the finest level."""
    level, coarse = levels[:2]
    choices = (solver.coarse_params, solver.exact_first), (adjoint.coarse_params, adjoint.exact_first)
    # Where state and adjoint coarsen alike, the coarse slots are made and sent once for both.
    same = levels == adjoint_levels and choices[0] == choices[1]

    def body(slots: Layers, u0: State, shared: PyTree, warm: Warm) -> tuple[Predicted, PyTree]:
        tau, sigma, guess, lam_guess = warm
        block = fold(slots, level.factor)
        payload = (tau, guess), (sigma, lam_guess)
        if same:
            blocks, (own, reverse) = coarse_blocks(block, levels, solver, backend, payload)
            lam_blocks = blocks
        else:
            blocks, own = coarse_blocks(block, levels, solver, backend, payload[0])
            lam_blocks, reverse = coarse_blocks(block, adjoint_levels, adjoint, backend, payload[1])
        batch = sweep_batch(solver, u0, backend.platform, level.share)
        grids = grids_of(equation, (block, *blocks), shared, levels, backend, batch)
        values = _coarse_problem(grids, solver, own[1], own[0], u0)
        if coarse.devices > 1:
            # A spread coarse level has u^N on one device only, and padding may follow it.
            device, interval = divmod(level.last_interval, level.share)
            u_final = broadcast(backend, entry(fine_grid_data(values, level, coarse, backend), interval), device)
        else:
            u_final = entry(values, level.last_interval)
        return Predicted(values, lam_blocks, *reverse), u_final

    states, _ = _specs(levels)
    lam_states, lam_blocks = _specs(adjoint_levels)
    return backend.lift(
        body,
        (SHARDED, STATE, SHARED_SPECS, SHARDED_STATES),
        (Predicted(states, lam_blocks, lam_states, lam_states), STATE),
    )


@cached
def sweep_program(
    equation: Equation,
    state_levels: tuple[Level, ...],
    levels: tuple[Level, ...],
    solver: MGRIT,
    backend: Backend,
    norms: tuple[Norm, Norm],
    moving: float | None,
) -> Callable[..., Swept]:
    """The second program: the adjoint's coarse problem, and the fused sweep with what it leaves.

    Args:
        equation: with the adjoint's coarse step.
        state_levels: the state's levels.
        levels: the adjoint's.
        solver: the adjoint's.
        backend: where the layers live.
        norms: of a residual of state and of adjoint.
        moving: see `PredictThenSweep`.
    """
    level = levels[0]

    def finish(arrived: State, lam: State, ends: State) -> tuple[PyTree, PyTree]:
        # tau_j += Psi(U_j) - U_{j+1} and sigma_j += Psi* Lam_{j+1} - Lam_j need no further evaluation of G.
        mismatch = subtract((arrived, lam), ends)
        squares = (norm(r) ** 2 for norm, r in zip(norms, mismatch, strict=True))
        sizes = (_squared(norm, x) for norm, x in zip(norms, (arrived, lam), strict=True))
        return (*squares, *sizes), mismatch

    def known(values: State, u0: State) -> PyTree:
        """The states before the adjoint's coarse slots, where those after the state's are known on every device."""
        if backend.size == 1 or state_levels[1].devices > 1 or levels[1].devices > 1:
            return None
        before = LOCAL.shift(values, 1, u0)
        return fold(fit(before, levels[1].slots, levels[1].front), levels[1].factor)

    def moved(tau: State, mismatch: State) -> PyTree:
        """A step of the moving average over iterations of the batch's mean, the same for all samples."""
        assert moving is not None
        # Leaves (share, samples, ...); the parts of the batch are equally large, so their means are averaged alike.
        mean = jax.tree.map(lambda x: jnp.mean(x, axis=1, keepdims=True) if x.ndim > 1 else x, mismatch)
        mean = backend.data_sum(mean)
        # beta tau + (1 - beta) (tau + mean mismatch), as tau + (1 - beta) mean mismatch.
        return jax.tree.map(lambda x, y: x + (1 - moving) / backend.data_size * y, tau, mean)

    def body(
        slots: Layers,
        u0: State,
        shared: PyTree,
        predicted: Predicted,
        tau: State,
        sigma: State,
        lam_final: State,
    ) -> Swept:
        batch = sweep_batch(solver, u0, backend.platform, level.share)
        blocks = (fold(slots, level.factor), *predicted.blocks)
        forward = grids_of(equation, blocks, shared, levels, backend, batch)
        ends = fine_grid_data(predicted.values, level, state_levels[1], backend)
        starts = forward[0].starts(ends, u0, _edge(forward[0], state_levels[1], predicted.values, u0))
        tapes = None
        if solver.inner_values:
            # The coarse adjoint is made of all layers' pullbacks; the fused sweep takes the same ones.
            # In the state's own partition no C-point lies inside an interval: no resets, offset 0.
            block = AdjointBlock(forward[0].blocks, forward[0].mask, starts, None, None)
            tapes = record_all(partial(_vjp_all, equation, shared), block, 0, level.share, batch)
        before = known(predicted.values, u0)
        grids = adjoint_grids(equation, forward, shared, Linearisation(starts), solver, before, tapes)
        values = _coarse_problem(grids, solver, predicted.lam_guess, predicted.sigma, lam_final)
        lam_ends = fine_grid_data(values, level, levels[1], backend)
        edge = _edge(grids[0], levels[1], values, lam_final)
        payload, total = (ends, lam_ends), (tau, sigma)
        gradients, squares, updated = vjp_sweep(
            equation, grids[0], shared, 0, lam_ends, lam_final, False, finish, payload, total, edge, tapes
        )
        # What the adjoint of the first interval arrived at.
        lam_initial = add(entry(lam_ends, 0), subtract(entry(updated[1], 0), entry(sigma, 0)))
        # Layer 0 is on the first device; the sum below gives its adjoint to all.
        lam_initial = where(backend.index() == 0, lam_initial, jax.tree.map(jnp.zeros_like, lam_initial))
        own = [own_sum(grids[0], x).astype(real_dtype(u0)) for x in squares]
        own, (rest, cost), lam_initial = backend.all_sum((own, (gradients.shared, gradients.cost), lam_initial))
        # Not `lam_initial`: like any state it belongs to the samples of its part.
        own, gradients = backend.data_sum((own, Gradients(gradients.slots, rest, cost)))
        residual, adjoint_residual, size, adjoint_size = (jnp.sqrt(x) for x in own)
        if moving is not None:
            # sigma is never updated then: it stays the 0 that `init` has made.
            updated = moved(tau, subtract(updated[0], tau)), sigma
        norms_of_both = residual, adjoint_residual, (size, adjoint_size)
        return Swept(updated[0], updated[1], ends, lam_ends, lam_initial, gradients, *norms_of_both)

    states, whole = SHARDED_STATES, (REPLICATED, REPLICATED, (REPLICATED, REPLICATED))
    predicted = Predicted(_specs(state_levels)[0], _specs(levels)[1], *(_specs(levels)[0],) * 2)
    in_specs = (SHARDED, STATE, SHARED_SPECS, predicted, states, states, STATE)
    out_specs = Swept(states, states, states, states, STATE, GRADIENT_SPECS, *whole)
    return backend.lift(body, in_specs, out_specs)


def _vjp_all(equation: Equation, shared: Shared, slot: Slot, u: State) -> Vjp:
    return equation.vjp_all(slot, u, shared, False)


def _squared(norm: Norm, state: State) -> jax.Array:
    """The square of a state's norm; of the Euclidean one in a single pass, since it is asked of every interval."""
    if norm is not euclidean_norm:
        return norm(state) ** 2
    dtype = norm_dtype(state)
    squares = [
        jnp.vdot(x, x, preferred_element_type=None if jnp.iscomplexobj(x) else dtype).real.astype(dtype)
        for x in jax.tree.leaves(state)
    ]
    return jnp.sum(jnp.stack(squares))
