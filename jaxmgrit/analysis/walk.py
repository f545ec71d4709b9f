"""The walk over a traced program: its marks, times the passes of the loops and by the branches they are in."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.extend.core as core
import jax.numpy as jnp
import numpy as np

from jaxmgrit._scopes import Scope
from jaxmgrit.analysis.marks import MARKS

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays

# (stride of the level, what) -> how often.
Tally = Counter[tuple[int, str]]
# A value that is known while walking (a loop's number, say), or None.
Known = Any

_SMALL = 64  # entries of an array whose values are worth knowing


class _Where(NamedTuple):
    """Where an operation is.

    Attributes:
        passes: of a `while_loop` of which nothing is said, see `jaxmgrit._scopes.at_most`.
        scope: what the names around it say.
        again: whether a pullback computes it again rather than keep what it needs.
    """

    passes: int
    scope: Scope = Scope()
    again: bool = False


class Walk:
    """Counts the marks of a program, remembering what it has counted."""

    def __init__(self) -> None:
        self._facts: dict[tuple[int, str], bool] = {}
        self._counted: dict[Any, tuple[Tally, list[Known]]] = {}
        self._alive: list[Any] = []  # so that no id is used twice

    def parts(self, closed: core.ClosedJaxpr, passes: tuple[int, int]) -> tuple[Tally, Tally]:
        """What is done before a top-level operation that holds the mark `split`, and from there on.

        Args:
            closed: the program.
            passes: in each part, of a `while_loop` of which nothing is said.
        """
        jaxpr = closed.jaxpr
        position = next((i for i, e in enumerate(jaxpr.eqns) if self._holds(e, "count_split")), len(jaxpr.eqns))
        known = _start(jaxpr, closed.consts, [None] * len(jaxpr.invars))
        before = self._all(jaxpr.eqns[:position], known, _Where(passes[0]))
        return before, self._all(jaxpr.eqns[position:], known, _Where(passes[1]))

    def _holds(self, equation: Any, what: str) -> bool:
        """Whether an operation is, or has inside, a mark ("any"), a branch between marks, or a primitive of a name."""
        name = equation.primitive.name
        inside = list(_programs(equation))
        if what == "any" and name in MARKS:
            return True
        if what == "branch" and name == "cond":
            return any(self._any(jaxpr, "any") for jaxpr, _ in inside)
        return name == what or any(self._any(jaxpr, what) for jaxpr, _ in inside)

    def _any(self, jaxpr: Any, what: str) -> bool:
        key = id(jaxpr), what
        if key not in self._facts:
            self._alive.append(jaxpr)
            self._facts[key] = any(self._holds(equation, what) for equation in jaxpr.eqns)
        return self._facts[key]

    def _program(self, program: Any, inputs: Sequence[Known], where: _Where) -> tuple[Tally, list[Known]]:
        jaxpr, consts = program
        # With the inputs that are known, since they may choose a branch inside.
        key = id(jaxpr), where, tuple(None if x is None else (x.shape, x.tobytes()) for x in inputs)
        if key not in self._counted:
            self._alive.append(jaxpr)
            known = _start(jaxpr, consts, inputs)
            tally = self._all(jaxpr.eqns, known, where)
            self._counted[key] = tally, [_value(known, x) for x in jaxpr.outvars]
        return self._counted[key]

    def _all(self, equations: Sequence[Any], known: dict[Any, Known], where: _Where) -> Tally:
        tally: Tally = Counter()
        for equation in equations:
            inputs = [_value(known, x) for x in equation.invars]
            if equation.primitive.name in MARKS or self._holds(equation, "any"):
                inner = where._replace(scope=where.scope.inside(str(equation.source_info.name_stack)))
                counted, outputs = self._one(equation, inputs, inner)
                tally.update(counted)
            else:
                outputs = _evaluated(equation, inputs) if all(x is not None for x in inputs) else []
            known.update(zip(equation.outvars, outputs, strict=False))
        return tally

    def _one(self, equation: Any, inputs: list[Known], where: _Where) -> tuple[Tally, list[Known]]:
        name, params = equation.primitive.name, equation.params
        if name in MARKS:
            return _marks(name, params, where), []
        if name == "scan":
            return self._scan(equation, inputs, where)
        if name == "while":
            times = where.passes if where.scope.times is None else where.scope.times
            return _times(times, self._each(equation, where._replace(again=False))), []
        if name == "cond":
            return self._cond(list(_programs(equation)), inputs, where)
        if name in ("checkpoint", "remat", "remat2"):
            where = where._replace(again=bool(params.get("differentiated")))
        inside = list(_programs(equation))
        if len(inside) == 1 and len(inside[0][0].invars) == len(inputs):
            return self._program(inside[0], inputs, where)
        return self._each(equation, where), []

    def _each(self, equation: Any, where: _Where) -> Tally:
        """All programs inside an operation, each once."""
        tally: Tally = Counter()
        for program in _programs(equation):
            tally.update(self._program(program, [None] * len(program[0].invars), where)[0])
        return tally

    def _scan(self, equation: Any, inputs: list[Known], where: _Where) -> tuple[Tally, list[Known]]:
        (program,), length = _programs(equation), equation.params["length"]
        where = where._replace(again=False)
        # By the axis of the passes, since versions of JAX differ in what a scan says of itself.
        carry = len(inputs) - _stacked(equation.invars, program[0].invars)
        consts = carry - len(equation.outvars) + _stacked(equation.outvars, program[0].outvars)
        # All passes do the same, unless the marks of one are behind a branch: then each is walked through.
        if not self._any(program[0], "branch"):
            unknown = [*inputs[:consts], *[None] * (len(inputs) - consts)]
            return _times(length, self._program(program, unknown, where)[0]), []
        tally: Tally = Counter()
        carried = inputs[consts:carry]
        for number in reversed(range(length)) if equation.params["reverse"] else range(length):
            entries = [None if x is None else x[number] for x in inputs[carry:]]
            counted, outputs = self._program(program, [*inputs[:consts], *carried, *entries], where)
            tally.update(counted)
            carried = outputs[: len(carried)]
        return tally, carried

    def _cond(self, branches: list[Any], inputs: list[Known], where: _Where) -> tuple[Tally, list[Known]]:
        """The branch taken; where that is not known, the one that does most."""
        which, *operands = inputs
        if which is not None:
            # Out of range it is clamped, as `lax.switch` does.
            return self._program(branches[int(np.clip(which, 0, len(branches) - 1))], operands, where)
        counted = [self._program(branch, operands, where)[0] for branch in branches]
        return max(counted, key=lambda tally: tally.total()), []


def _stacked(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    """Of a scan's arguments or results, how many have an entry for every pass."""
    return sum(x.aval.ndim > y.aval.ndim for x, y in zip(outside, inside, strict=True))


def _start(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Known]) -> dict[Any, Known]:
    known = dict(zip(jaxpr.constvars, map(_worth_knowing, consts), strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))
    return known


def _programs(equation: Any) -> Iterator[tuple[Any, Sequence[Any]]]:
    """The programs inside an operation, as pairs (jaxpr, constants)."""
    for value in equation.params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr, one.consts
            elif isinstance(one, core.Jaxpr):
                yield one, ()


def _marks(name: str, params: Any, where: _Where) -> Tally:
    if name == "count_message":
        level = where.scope.level
        return Counter({(level, params["kind"]): 1, (level, "bytes"): params["bytes"]})
    # What a pullback evaluates again counts as part of the pullback.
    if name == "count_split" or (name == "count_step" and where.again):
        return Counter()
    batched = params["times"] > 1
    # Several at a time, or named as a sweep; any other step waits for the one before.
    serial = "" if where.scope.swept or batched else "serial_"
    if name == "count_step":
        return Counter({(params["stride"], f"{serial}phi"): params["times"]})
    return Counter({(params["stride"], f"{serial}{params['of']}"): params["times"]})


def _times(count: int, tally: Tally) -> Tally:
    return Counter({key: count * value for key, value in tally.items()})


def _value(known: dict[Any, Known], x: Arrays) -> Known:
    return _worth_knowing(x.val) if isinstance(x, core.Literal) else known.get(x)


def _worth_knowing(x: Arrays) -> Known:
    """Small arrays of integers or truth values, such as choose a branch."""
    dtype = jnp.result_type(x)
    whole = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)
    return np.asarray(x) if whole and np.size(x) <= _SMALL else None


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "ge": operator.ge,
    "gt": operator.gt,
    "le": operator.le,
    "lt": operator.lt,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": operator.and_,
    "or": operator.or_,
    "not": np.logical_not,
    "min": np.minimum,
    "max": np.maximum,
    "copy": np.asarray,
    "stop_gradient": np.asarray,
}


def _evaluated(equation: Any, inputs: list[Known]) -> list[Known]:
    """What an operation on known values makes, where it is one of those that count and compare."""
    name, params = equation.primitive.name, equation.params
    if name == "iota" and len(params["shape"]) == 1:
        return [_worth_knowing(np.arange(params["shape"][0], dtype=params["dtype"]))]
    if name == "convert_element_type":
        return [_worth_knowing(inputs[0].astype(params["new_dtype"]))]
    if name in _ARITHMETIC and all(x.ndim == 0 for x in inputs):
        return [np.asarray(_ARITHMETIC[name](*inputs))]
    return []
