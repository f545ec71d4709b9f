"""When training has gone wrong, and from where, how carefully and how often it starts again."""

import dataclasses
import math

import jaxmgrit as jm
from experiments.config.schema import Recovery
from experiments.errors import TrainingStopped
from experiments.training.checkpoint import Checkpoint
from experiments.training.course import PATIENCE, Course
from experiments.training.records import Row
from jaxmgrit.analysis.control import ControlState


def trouble(row: Row, course: Course, growth: float) -> str:
    """What is wrong, if anything: not finite, a loss out of all bounds, a solver that diverges all the time.

    Args:
        row: The metrics of an iteration.
        course: Of the training; the first loss and for how long the solver has diverged are noted in it.
        growth: Of the loss over its first value (or 1) that is borne.
    """
    result = jm.Result(row["result"])
    wild = [key for key in ("inexact_loss", "objective", "grad_norm") if not math.isfinite(row[key])]
    if wild:
        return f"{wild[0]} = {row[wild[0]]:.3g}"
    if result == jm.Result.NOT_FINITE:
        return "parameters, states or adjoints are not finite"
    course.first_loss = row["inexact_loss"] if course.first_loss is None else course.first_loss
    # At least 1, or after a first loss near zero any later one would be out of bounds.
    if row["inexact_loss"] > growth * max(1.0, course.first_loss):
        return f"inexact_loss = {row['inexact_loss']:.3g}, after {course.first_loss:.3g} at first"
    course.diverging = course.diverging + 1 if result == jm.Result.DIVERGED else 0
    return f"for {PATIENCE} iterations: {result.sentence}" if course.diverging >= PATIENCE else ""


def stepped_back(
    course: Course, good: Checkpoint | None, row: Row, reason: str, recovery: Recovery, rungs: int
) -> Course:
    """The course of a training that goes back to its last good state, with a smaller rate and a more exact solver.

    Args:
        course: Up to now.
        good: The last good state; None: there is none.
        row: The metrics of the iteration that went wrong.
        reason: What went wrong with it.
        recovery: How often, and how much smaller the rate.
        rungs: Of the ladder of solvers.

    Raises:
        TrainingStopped: It has gone back often enough, or there is no state to go back to.
    """
    if good is None or course.setbacks >= recovery.attempts:
        tried = f", after {course.setbacks} steps back with ever smaller learning rates" if course.setbacks else ""
        raise TrainingStopped(
            f"iteration {row['iteration']}{tried}: {reason}. Lower optimizer.learning_rate or network.scale, or "
            "raise solver.cycles; --training.method sequential tells whether the network itself overflows."
        )
    rung = min(course.control.rung + 1, rungs - 1)
    # Time that was spent and decisions that were told do not go back with the state.
    return dataclasses.replace(
        Course(**good.loop),
        seconds=course.seconds,
        events=course.events,
        rate=course.rate * recovery.rate_factor,
        setbacks=course.setbacks + 1,
        control=ControlState(rung, check=good.iteration, since=good.iteration),
    )
