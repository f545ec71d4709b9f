"""How a solve ended: a code with a sentence; errors are raised on the host."""

from __future__ import annotations

import enum

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

# Of the state's size (or of the first residual): a residual above it says that the cycles have not done their work.
LARGE = 0.1
STALL = 0.5


class Result(enum.IntEnum):
    """How a solve ended; `sentence` says it in words.

    0 to 3 are the codes of earlier versions. Their order says nothing: see `worse`.

    Example:
        >>> import jaxmgrit as jm
        >>> jm.Result(5).name
        'SEQUENTIAL'
    """

    CONVERGED = 0
    CYCLES_USED_UP = 1
    DIVERGED = 2
    NOT_FINITE = 3
    STALLED = 4
    SEQUENTIAL = 5
    COUPLED = 6
    REPEATED_SAMPLES = 7
    OTHER_BATCH = 8

    @property
    def sentence(self) -> str:
        """What happened and what helps."""
        return _SENTENCES[self]


# How bad each code is, by its number: exact values first, then the less to be trusted the later.
_SEVERITY = (0, 3, 7, 8, 4, 1, 2, 6, 5)

_SENTENCES = {
    Result.CONVERGED: "The solve converged.",
    Result.CYCLES_USED_UP: (
        "All cycles were used; where a tolerance was set, it was not reached: allow more cycles, relax more "
        "(cf_relaxations), coarsen less, or use jm.Sequential()."
    ),
    Result.DIVERGED: (
        "The solve diverged: the residual grew from the first cycle to the last. The layers change too much over one "
        "coarse step: coarsen less, relax more (cf_relaxations=(1, 1)), use a shorter final time, or use "
        "jm.Sequential()."
    ),
    Result.NOT_FINITE: (
        "The solve met a value that is not finite (NaN or infinity): look at the input, the parameters and the "
        "learning rate; jm.Sequential() tells whether the network itself overflows."
    ),
    Result.STALLED: (
        "The residual grew, stalled or is still a tenth of the values it belongs to, so values and gradients may be "
        "far off: coarsen less, relax more (cf_relaxations=(1, 1)), take a coarse step that suits the layers, or use "
        "jm.Sequential()."
    ),
    Result.SEQUENTIAL: (
        "The cycles did not reach the tolerance, so the layers were propagated one after another: the result is exact "
        "and the cycles were wasted. jm.Sequential() gives it without them."
    ),
    Result.COUPLED: (
        "The result is exact, but the samples along batch_axis are coupled (as by batch normalisation), which Newton's "
        "Jacobians of single samples do not know, so it took more iterations than it should, or a sequential run: give "
        "jm.Newton(batch_axis=None) if the whole state is small, else use jm.Sequential()."
    ),
    Result.REPEATED_SAMPLES: (
        "A sample is named more than once in `samples`, but has one warm value only: draw the samples of a step "
        "without replacement."
    ),
    Result.OTHER_BATCH: (
        "The batch is not the one that the warm values belong to, so the cycles started from another batch's states: "
        "name the `samples` of the batch given to init that it holds, or take jm.OneShot(start='cold') for batches "
        "that do not come again."
    ),
}


class SolveError(RuntimeError):
    """A solve did not end well; `result` holds its code.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> theta, u0 = 0.1 * jnp.ones((64, 4, 4)), jnp.ones((2, 4))
        >>> sol = jm.solve(step, theta, u0, h=1 / 64, solver=jm.MGRIT(4, cycles=1, rtol=1e-30))
        >>> try:
        ...     sol.check()
        ... except jm.SolveError as error:
        ...     print(error.result.name)
        CYCLES_USED_UP
    """

    def __init__(self, result: Result, message: str) -> None:
        super().__init__(message)
        self.result = result


def worse(a: ArrayLike, b: ArrayLike) -> jax.Array:
    """The worse of two codes, by a table of how far their values are to be trusted; shapes broadcast.

    From good to bad: CONVERGED, SEQUENTIAL, COUPLED, CYCLES_USED_UP, STALLED, OTHER_BATCH, REPEATED_SAMPLES, DIVERGED,
    NOT_FINITE.
    """
    # Not a maximum of codes: the numbers of earlier versions are not in order of severity.
    severity = jnp.asarray(_SEVERITY, jnp.int32)
    return jnp.where(severity[jnp.asarray(a)] >= severity[jnp.asarray(b)], a, b).astype(jnp.int32)


def check(result: ArrayLike, *, tolerance: bool = False, details: str = "") -> None:
    """Raise if a result code (or any of an array of them) reports values not to be used, or samples mixed up.

    That is: divergence, values that are not finite, another batch's warm values, samples named twice.

    Args:
        result: an integer code or array of codes, on the host (not inside a jitted function).
        tolerance: whether a tolerance was asked for; then used-up cycles and stalled residuals raise as well.
        details: a sentence to add, about the residuals say.

    Raises:
        SolveError: with the sentence of the worst code.

    Example:
        >>> import jaxmgrit as jm
        >>> jm.check(jm.Result.CONVERGED)
        >>> try:
        ...     jm.check([0, 2])
        ... except jm.SolveError as error:
        ...     error.result.name
        'DIVERGED'
    """
    worst = Result(max(np.asarray(result).ravel().tolist(), key=lambda code: _SEVERITY[code]))
    unmet = worst in (Result.CYCLES_USED_UP, Result.STALLED)
    # Less severe than OTHER_BATCH are exact values, and inexact ones, as few cycles without a tolerance leave them.
    if _SEVERITY[worst] >= _SEVERITY[Result.OTHER_BATCH] or (tolerance and unmet):
        raise SolveError(worst, f"{worst.sentence} {details}".strip())


def is_stalled(first: jax.Array, last: jax.Array, scale: jax.Array, recorded: jax.Array) -> jax.Array:
    """Whether the recorded residuals say that the cycles did not do their work: see `Result.STALLED`.

    Args:
        first: the first residual norm recorded.
        last: the last one.
        scale: norm of the values.
        recorded: how many there are; one alone says nothing of the next.
    """
    eps = float(jnp.finfo(last.dtype).eps)
    # Where half of the digits are right, a residual that falls slowly or not at all is no failure.
    return (recorded >= 2) & (last > eps**0.5 * scale) & ((last > STALL * first) | (last > LARGE * scale))


def result_code(
    finite: ArrayLike,
    converged: ArrayLike,
    diverged: ArrayLike,
    stalled: ArrayLike = False,
    rescued: ArrayLike = False,
) -> jax.Array:
    """The code, as an int32 scalar; the first that holds of not finite, rescued, converged, diverged and stalled."""
    code = jnp.where(stalled, Result.STALLED.value, Result.CYCLES_USED_UP.value)
    code = jnp.where(diverged, Result.DIVERGED.value, code)
    code = jnp.where(converged, Result.CONVERGED.value, code)
    code = jnp.where(rescued, Result.SEQUENTIAL.value, code)
    return jnp.where(finite, code, Result.NOT_FINITE.value).astype(jnp.int32)
