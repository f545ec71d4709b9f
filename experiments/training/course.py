"""The course of a training so far: what the loop remembers besides the trainer's state."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from experiments.config.ladder import ladder
from experiments.config.schema import Config
from experiments.foundation.numbers import is_number
from experiments.training import nested
from experiments.training.checkpoint import Refused
from jaxmgrit.analysis.control import ControlState

FAILED_SEARCHES = 5  # line searches in a row that may fail before training ends; the states get better meanwhile
FEWEST = 8  # values of the control in checkpoints of version 0.1
PATIENCE = 20  # iterations in a row in which the solver may diverge; a few do no harm


@dataclass
class Course:
    """What the loop remembers besides the trainer's state; it goes into checkpoints as JSON.

    Attributes:
        seconds: Spent in iterations.
        events: Decisions taken.
        first_loss: The inexact loss of iteration 0.
        diverging: Iterations in a row, up to the last, in which the solver diverged.
        rate: Factor on the learning rate.
        setbacks: Steps back so far.
        failed_searches: Iterations in a row, up to the last, whose line search failed.
        end: The last iteration, where training ends before the config's.
        network: Which of the networks of a nested training is trained, 0 the shallowest.
        begun: The iteration from which it is.
        control: What the control of inexactness remembers.
    """

    seconds: float = 0.0
    events: int = 0
    first_loss: float | None = None
    diverging: int = 0
    rate: float = 1.0
    setbacks: int = 0
    failed_searches: int = 0
    end: int | None = None
    network: int = 0
    begun: int = 0
    control: ControlState = ControlState()

    def __post_init__(self) -> None:
        self.control = ControlState(*self.control)  # JSON has made a list of it

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return dataclasses.asdict(self)


def read_course(values: object, config: Config, iteration: int) -> Course:
    """The course that a checkpoint holds, checked: a file whose checksum is right may still be made up.

    Args:
        values: What `Course.to_json` has given, read back.
        config: Of the training.
        iteration: Of the checkpoint.

    Raises:
        Refused: A value that no training leaves; the message names it, but not the checkpoint.
    """
    if not isinstance(values, dict):
        raise Refused(f"loop is {_show(values)}, expected an object")
    fields = {field.name: field for field in dataclasses.fields(Course)}
    if unknown := sorted(set(values) - set(fields)):
        raise Refused(f"loop.{unknown[0]} is not known to this version")
    given: dict[str, Any] = {name: field.default for name, field in fields.items()} | values
    rungs, networks = len(ladder(config)), len(nested.networks(config))
    for name, expected, right in _course_rules(iteration, networks, config.recovery.attempts):
        if not right(given[name]):
            raise Refused(f"loop.{name} is {_show(given[name])}, expected {expected}")
    state = given["control"]
    most = len(ControlState._fields)
    if not isinstance(state, (list, tuple)) or len(state) not in (FEWEST, most):
        raise Refused(f"loop.control is {_show(state)}, expected {FEWEST} values, or {most}")
    control = ControlState(*state)
    for name, expected, right in _control_rules(rungs, iteration):
        if not right(getattr(control, name)):
            raise Refused(f"loop.control.{name} is {_show(getattr(control, name))}, expected {expected}")
    return Course(**given)


Rule = tuple[str, str, Callable[[Any], bool]]  # name, what is expected of its value, and whether a value is right


def _course_rules(iteration: int, networks: int, attempts: int) -> list[Rule]:
    """What the values of a course can be at an iteration of a training."""
    return [
        ("seconds", "a number >= 0", lambda x: is_number(x) and x >= 0),
        ("events", "an integer >= 0", lambda x: _integer(x, 0)),
        ("first_loss", "a number or null", lambda x: x is None or is_number(x)),
        ("diverging", f"an integer from 0 to {PATIENCE}", lambda x: _integer(x, 0, PATIENCE)),
        ("rate", "a number above 0, at most 1", lambda x: is_number(x) and 0 < x <= 1),
        ("setbacks", f"an integer from 0 to {attempts}", lambda x: _integer(x, 0, attempts)),
        ("failed_searches", f"an integer from 0 to {FAILED_SEARCHES}", lambda x: _integer(x, 0, FAILED_SEARCHES)),
        ("end", f"null or {iteration}", lambda x: x is None or _integer(x, iteration, iteration)),
        ("network", f"an integer from 0 to {networks - 1}", lambda x: _integer(x, 0, networks - 1)),
        ("begun", f"an integer from 0 to {iteration}", lambda x: _integer(x, 0, iteration)),
    ]


def _control_rules(rungs: int, iteration: int) -> list[Rule]:
    """What the control's values can be."""
    count = ("an integer >= 0", lambda x: _integer(x, 0))
    loss = ("a number or null", lambda x: x is None or is_number(x))
    return [
        ("rung", f"an integer from 0 to {rungs - 1}", lambda x: _integer(x, 0, rungs - 1)),
        ("check", *count),
        ("interval", *count),
        ("patience", *count),
        ("since", f"an integer from 0 to {iteration}", lambda x: _integer(x, 0, iteration)),
        ("origin", f"an integer from -1 to {rungs - 1}", lambda x: _integer(x, -1, rungs - 1)),
        *((name, *loss) for name in ("lowest", "last", "mismatch", "error", "grad_norm", "largest")),
    ]


def _integer(value: object, least: int, most: int = 2**62) -> bool:
    # JSON's true would be the integer 1.
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
