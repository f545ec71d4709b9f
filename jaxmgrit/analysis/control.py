"""When an inexact gradient is too inexact: which of several solvers, from cheap to exact, a training should use next.

Pure decisions over what `compare` measures. The solvers form a ladder: rung 0 is the one asked for, every further one
does more cycles, and the last is sequential. Whoever trains asks `is_due`, then `compare`s, then asks `decide`, and
changes the solver where the rung has changed.

Where rungs differ by Picard sweeps the mismatch that every sweep leaves behind tells most of it for free: one
comparison says how large the gradient's error is for a mismatch, and from then on `follow` climbs and comes down by
the mismatch alone, and a comparison confirms every change (`confirm`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

NEGLIGIBLE = 0.1  # of the tolerance: the gradient is so good that slow cycles do no harm
SETTLED = 5  # iterations until the mismatch of a new rung tells of it
GAIN = 8.0  # by which one Picard sweep less may raise the mismatch


@dataclass(frozen=True)
class Control:
    """When to compare with the exact gradient, and what to make of it.

    Args:
        tolerance: relative distance of the inexact gradient from the exact one that is borne, > 0.
        min_cosine: of the angle between them that is borne, in (0, 1).
        soon: iterations to the next comparison after a change, >= 1.
        longest: iterations between comparisons while all is well, >= soon; the interval doubles until then.
        alarm: a comparison is made early where the objective exceeds the lowest one since the last by this factor, > 1.
        near_zero: of the largest gradient norm so far, in [0, 1): of a smaller gradient no precision is asked (near a
            minimum its relative error says nothing), its error is taken relative to this. Only where `follow` is used.

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> import jaxmgrit as jm
        >>> from jaxmgrit.control import ControlState, Measured, decide
        >>> far_off = Measured(cosine=0.95, distance=0.3, factor=0.1, adjoint_factor=0.1)
        >>> state, why = decide(jm.Control(tolerance=0.1), ControlState(), 0, far_off, cycles=(1, 2, 4, None))
        >>> state.rung  # two cycles instead of one
        1
    """

    tolerance: float = 0.05
    min_cosine: float = 0.9
    soon: int = 10
    longest: int = 400
    alarm: float = 1.5
    near_zero: float = 0.05

    def __post_init__(self) -> None:
        for name, wrong, expected in (
            ("tolerance", not self.tolerance > 0, "> 0"),
            ("min_cosine", not 0 < self.min_cosine < 1, "between 0 and 1"),
            ("soon", self.soon < 1, ">= 1"),
            ("longest", self.longest < self.soon, f">= soon = {self.soon}"),
            ("alarm", not self.alarm > 1, "> 1"),
            ("near_zero", not 0 <= self.near_zero < 1, ">= 0 and below 1"),
        ):
            if wrong:
                raise ValueError(f"Control: {name}={getattr(self, name)} is out of range; give a number {expected}.")


class ControlState(NamedTuple):
    """What the control remembers; plain numbers.

    Attributes:
        rung: of the ladder, in use.
        check: iteration of the next comparison.
        interval: iterations between comparisons.
        patience: iterations a rung is kept before a cheaper one is tried; doubles whenever one fails on trial.
        since: iteration since which the rung is in use.
        origin: the dearer rung to fall back to, where the one in use is on trial; -1 where it is not.
        lowest: objective since the last comparison; None right after it.
        last: objective of the last iteration.
        mismatch: of the last iterations, averaged; None right after a change.
        error: of the gradient over the mismatch, at the last comparison; None before there is one.
        grad_norm: of the last iteration.
        largest: gradient norm so far.
    """

    rung: int = 0
    check: int = 0
    interval: int = 0
    patience: int = 20
    since: int = 0
    origin: int = -1
    lowest: float | None = None
    last: float | None = None
    mismatch: float | None = None
    error: float | None = None
    grad_norm: float | None = None
    largest: float | None = None


class Measured(NamedTuple):
    """A `Comparison` in Python numbers."""

    cosine: float
    distance: float
    factor: float
    adjoint_factor: float


EXACT = Measured(1.0, 0.0, 0.0, 0.0)  # what need not be measured of sequential sweeps


def is_due(control: Control, state: ControlState, iteration: int) -> bool:
    """Whether to compare before this iteration."""
    rested = iteration - (state.check - state.interval) >= control.soon
    alarmed = state.lowest is not None and state.last is not None and state.last > control.alarm * state.lowest
    # An objective that stays high must not have every iteration compared.
    return iteration >= state.check or (alarmed and rested)


def observe(
    state: ControlState, objective: float, mismatch: float | None = None, grad_norm: float | None = None
) -> ControlState:
    """Take note of an iteration's objective; and where `follow` is used of its mismatch and gradient norm."""
    state = state._replace(last=objective, lowest=objective if state.lowest is None else min(state.lowest, objective))
    if mismatch is not None:
        state = state._replace(mismatch=mismatch if state.mismatch is None else 0.5 * (state.mismatch + mismatch))
    if grad_norm is not None:
        state = state._replace(grad_norm=grad_norm, largest=max(grad_norm, state.largest or 0.0))
    return state


def follow(
    control: Control, state: ControlState, iteration: int, top: int, most_swept: int | None = None
) -> tuple[ControlState, str]:
    """Change the rung by the mismatch alone, without a comparison.

    Args:
        control: options.
        state: from the last decision or observation.
        iteration: the one about to be done.
        top: index of the last rung, sequential sweeps; it is never entered nor left here.
        most_swept: index of the rung with the most Picard sweeps, behind which there are more cycles with as many
            sweeps; None: the last before sequential sweeps.

    Returns:
        The next state and the reason for a change; "" if there is none. A comparison confirms every change, and is due
        at once where more sweeps have come to an end: only it tells whether cycles converge.
    """
    most_swept = top - 1 if most_swept is None else most_swept
    if state.rung == top or iteration - state.since < SETTLED or state.mismatch is None or state.error is None:
        return state, ""
    foreseen = state.error * state.mismatch
    says = f"a mismatch of {state.mismatch:.2g}, so a relative distance of about {foreseen:.2g} from the exact gradient"
    # Not `>`: NaN has to climb too.
    if not foreseen <= control.tolerance:
        if state.rung >= most_swept:
            return state._replace(check=iteration), ""
        patience = 2 * state.patience if state.origin >= 0 else state.patience
        after = _changed(state._replace(patience=patience), iteration, state.rung + 1)
        return _settling(after, iteration), f"{says}, above {control.tolerance:g}"
    waited = iteration - state.since >= state.patience
    # With room to spare, or the cheaper rung would soon be left again.
    if state.rung > 0 and waited and foreseen * GAIN <= 0.5 * control.tolerance:
        after = _changed(state, iteration, state.rung - 1, origin=state.rung)
        return _settling(after, iteration), f"{says}: one rung less will do"
    return state, ""


def confirm(
    control: Control,
    state: ControlState,
    iteration: int,
    measured: Measured,
    cycles: Sequence[int | None],
    most_swept: int | None = None,
) -> tuple[ControlState, str]:
    """What to do after a comparison where `follow` decides in between; results as of `decide`.

    Args:
        control: as of `decide`.
        state: likewise.
        iteration: likewise.
        measured: likewise.
        cycles: likewise.
        most_swept: as of `follow`.
    """
    if state.grad_norm is not None and state.largest:
        part = state.grad_norm / max(state.grad_norm, control.near_zero * state.largest)
        measured = measured._replace(distance=part * measured.distance, cosine=measured.cosine if part == 1 else 1.0)
    after, reason = decide(control, state, iteration, measured, cycles)
    top = len(cycles) - 1
    most_swept = top - 1 if most_swept is None else most_swept
    if state.rung == top:
        # Serial sweeps are left for the most Picard sweeps, on trial.
        return (after._replace(rung=most_swept, mismatch=None) if reason else after), reason
    if reason and after.rung > state.rung:
        # The layers' law promises much of one sweep more: that is tried first. No law makes cycles converge.
        if state.rung >= most_swept and max(measured.factor, measured.adjoint_factor) >= 1:
            after = after._replace(rung=top)
        elif state.origin < top:
            after = after._replace(rung=state.rung + 1)
        return _settling(after, iteration), reason
    if reason:
        return _settling(after, iteration), reason
    if state.mismatch is not None and state.mismatch > 0:
        after = after._replace(error=measured.distance / state.mismatch)
    if measured.distance <= 0.5 * control.tolerance:
        after = after._replace(interval=control.longest, check=iteration + control.longest)
    return after, ""


def _settling(state: ControlState, iteration: int) -> ControlState:
    """The state after a change that is compared when its mismatch tells of it."""
    return state._replace(check=iteration + SETTLED, mismatch=None)


def decide(
    control: Control, state: ControlState, iteration: int, measured: Measured, cycles: Sequence[int | None]
) -> tuple[ControlState, str]:
    """What to do after a comparison.

    Args:
        control: options.
        state: from the last decision.
        iteration: the one about to be done.
        measured: about the rung in use.
        cycles: of each rung, ascending; None: sequential.

    Returns:
        The next state, whose rung is the one to use, and the reason for a change; "" if there is none. After a change
        a comparison is due at once: make it after a few steps that are taken back, so that no training is ever done
        with a solver that has not been seen to do.
    """
    trouble, top = _trouble(control, measured), len(cycles) - 1
    on_trial, waited = state.origin >= 0, iteration - state.since >= state.patience
    if trouble and state.rung < top:
        rung = _rung_for(control, measured, state.rung, cycles, state.origin if on_trial else None)
        # Bounded, so that a training that has calmed down is tried again.
        patience = min(2 * state.patience, 16 * control.longest) if on_trial else state.patience
        return _changed(state._replace(patience=patience), iteration, rung), trouble
    if state.rung > 0 and not on_trial and waited and (hope := _hope(control, measured, state.rung, cycles)):
        # Sequential sweeps tell nothing of how cycles converge: begin with the cheapest.
        cheaper = 0 if cycles[state.rung] is None else state.rung - 1
        return _changed(state, iteration, cheaper, origin=state.rung), hope
    interval = min(max(2 * state.interval, control.soon), control.longest)
    origin = -1 if waited else state.origin
    return state._replace(check=iteration + interval, interval=interval, origin=origin, lowest=None), ""


def _changed(state: ControlState, iteration: int, rung: int, origin: int = -1) -> ControlState:
    """The state after a change of rung: compare at once."""
    return state._replace(rung=rung, check=iteration, interval=0, since=iteration, origin=origin, lowest=None)


def _trouble(control: Control, measured: Measured) -> str:
    """Why the gradient in use will not do; "" if it will."""
    cosine, distance = measured.cosine, measured.distance
    if not all(map(math.isfinite, measured)):
        return "the comparison with the exact gradient is not finite"
    if cosine <= 0:
        return f"the inexact gradient is no descent direction: cosine {cosine:.2f} to the exact one"
    if cosine < control.min_cosine:
        return f"cosine {cosine:.2f} between inexact and exact gradient, below {control.min_cosine:g}"
    if distance > control.tolerance:
        return f"relative distance {distance:.2g} of the inexact from the exact gradient, above {control.tolerance:g}"
    for name, factor in (("state", measured.factor), ("adjoint", measured.adjoint_factor)):
        if factor > 1 and distance > NEGLIGIBLE * control.tolerance:
            return f"the {name}'s cycles do not converge: factor {factor:.2g}"
    return ""


def _rung_for(control: Control, measured: Measured, rung: int, cycles: Sequence[int | None], origin: int | None) -> int:
    """The first rung whose gradient, by the convergence seen, will be well within the tolerance; at least one up.

    Where the cycles do not converge, nothing can be foretold: one rung up, or back to where a trial started from.
    """
    most, own = len(cycles) - 1 if origin is None else origin, cycles[rung]
    factor = max(measured.factor, measured.adjoint_factor)
    if own is None or not (math.isfinite(measured.distance) and factor < 1):
        return rung + 1 if origin is None else origin
    # `factor` is that of `own` cycles, whose error is known: `count` cycles are count/own - 1 times as many more.
    for higher in range(rung + 1, most):
        count = cycles[higher]
        if count is None or measured.distance * factor ** (count / own - 1) <= 0.5 * control.tolerance:
            return higher
    return most


def _hope(control: Control, measured: Measured, rung: int, cycles: Sequence[int | None]) -> str:
    """Why a cheaper rung may do; "" if it will not."""
    own, count = cycles[rung], cycles[rung - 1]
    if own is None or count is None:
        return "sequential sweeps have been done for a while"
    factor = min(1.0, max(measured.factor, measured.adjoint_factor))
    expected = measured.distance * factor ** (count / own - 1) if factor > 0 else 0.0
    if expected > 0.5 * control.tolerance:
        return ""
    return f"relative distance {measured.distance:.2g} of the gradients with {own} cycles, {expected:.2g} expected"
