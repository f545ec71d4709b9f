"""`scan`: `lax.scan`, whose carries may be solved for in parallel over the steps."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmgrit._checks import check_backend, check_carry, check_layers
from jaxmgrit.backend.local import LOCAL
from jaxmgrit.solvers.mgrit.coarse import midpoint, same_step
from jaxmgrit.solvers.mgrit.solver import CONVERGED
from jaxmgrit.solvers.sequential import SEQUENTIAL
from jaxmgrit.verbs.differentiable import chosen, is_plain, plainly, solved

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Layers, State, StepSize
    from jaxmgrit.backend.base import Backend
    from jaxmgrit.solvers.base import Solver

PyTree = Any


def scan(
    f: Callable[..., tuple[PyTree, PyTree]],
    init: State,
    xs: Layers = None,
    *,
    h: StepSize = None,
    solver: Solver | None = None,
    adjoint: Solver | None = None,
    backend: Backend = LOCAL,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan(f, init, xs)`, by any solver and on any backend: the same contract, values and gradients.

    Without a solver, on one device, it is that scan, as `propagate` is: every transformation of JAX and every dtype of
    carries work, and the gradient keeps what it needs or computes it again, whichever is faster for its size. With a
    solver the carries are solved for in parallel over the steps; outputs then come from one more sweep, parallel too.
    In the gradient, the cotangent of the outputs enters the adjoint as a running cost's derivative does.

    Without `h` a step is just a map, from which no coarse step can be made by a larger step size: `same_step` and
    `midpoint` are refused. `jm.Newton()`, `jm.Sequential()`, and MGRIT with coarse steps that do not rescale h
    (`picard` with `all_layers`, `zero_step`, your own) do without. On several devices the default is to iterate to
    rounding with `h`, and one step after another without it, for which the devices work by turns.

    Args:
        f: (carry, x) -> (carry, y); with `h` given (carry, x, h) -> (carry, y). Pure; what it closes over (shared
            weights) is differentiated.
        init: carry, a pytree of arrays; floating point where a solver is named or the steps are spread over devices.
        xs: leaves with leading axis N, or None.
        h: step size, a scalar or one per step, shape (N,), or None.
        solver: for the carries, `MGRIT(...)`, `Newton(...)` or `Sequential()`; None: exact.
        adjoint: for their adjoint, likewise; None: exact.
        backend: where the steps live, without a data axis.
        length: N, where xs has no leaves.
        reverse: whether the run goes from the last entry of xs to the first; outputs stay where their x is.
        unroll: as in `lax.scan`; a hint for the plain program alone.

    Returns:
        The last carry, like init; and the outputs of all steps, leading axis N.

    Raises:
        TypeError: forward-mode differentiation where a solver is named, and arguments of the wrong kind.
        ValueError: arguments that do not fit together.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> weights, xs = 0.3 * jnp.ones((4, 4)), jnp.ones((64, 4))
        >>> cell = lambda u, x: (jnp.tanh(u @ weights + x), u.sum())
        >>> carry, ys = jm.scan(cell, jnp.zeros(4), xs)
        >>> ys.shape
        (64,)
    """
    if not callable(f):
        raise TypeError(f"scan: f={f!r} is not a function; give f(carry, x) -> (carry, y).")
    check_backend(backend)
    check_carry(init, "init")
    steps = _length(xs, length)
    layer = _Layer(f, h is not None)
    # Of no steps there is nothing to solve for, whatever the solver.
    if is_plain(solver, adjoint, backend, steps) or steps == 0:
        return plainly(layer, xs, init, 1.0 if h is None else h, steps, True, reverse, unroll)

    if backend.data_size > 1:
        raise ValueError(
            "scan: backend has a data axis, but which axes of xs, carries and outputs are the samples' is not known; "
            "leave it out, and divide the batch by jax.vmap or by sharding the arrays."
        )
    exact = SEQUENTIAL if h is None else CONVERGED
    solver, adjoint = chosen(solver, adjoint, backend, exact)
    if h is None:
        _check_coarse_step(solver, steps, backend, "solver")
        _check_coarse_step(adjoint, steps, backend, "adjoint")
    # Solvers want one; `_Layer` does not hand it on.
    h = 1.0 if h is None else h
    if not jax.tree.leaves(xs):  # then the steps are counted, to know how many there are
        layer, xs = _Layer(f, layer.takes_h, counted=True), (xs, jnp.arange(steps, dtype=jnp.int32))
    # Solvers run forwards: the steps are turned round, and the outputs back.
    if reverse:
        xs, h = jax.tree.map(lambda x: x[::-1], xs), h if jnp.ndim(h) == 0 else h[::-1]
    carry, ys, _ = solved(layer, xs, init, h, solver, adjoint, backend, True, "scan")
    return carry, jax.tree.map(lambda y: y[::-1], ys) if reverse else ys


@dataclass(frozen=True)
class _Layer:
    """The user's f with the arguments of a layer: (x, carry, h) -> (carry, y)."""

    f: Callable[..., tuple[PyTree, PyTree]]
    takes_h: bool
    counted: bool = False

    def __call__(self, x: Arrays, carry: State, h: StepSize) -> tuple[PyTree, PyTree]:
        x = x[0] if self.counted else x
        return self.f(carry, x, h) if self.takes_h else self.f(carry, x)


def _length(xs: Layers, length: int | None) -> int:
    """The number of steps, from the leading axis of xs or as it is given."""
    if length is not None:
        length = operator.index(length)
    if not jax.tree.leaves(xs):
        if length is None or length < 0:
            raise ValueError(f"scan: xs has no leaves and length={length}; give the number of steps as length=N.")
        return length
    steps = check_layers(xs, "xs", least=0)
    if length is not None and length != steps:
        raise ValueError(f"scan: length={length}, but xs has leading axes of {steps}; leave length out.")
    return steps


def _check_coarse_step(solver: Solver, steps: int, backend: Backend, name: str) -> None:
    """Raise a ValueError where coarse steps are to be made by a larger h, and there is no h."""
    if solver.coarse_step in (same_step, midpoint) and len(solver.hierarchy(steps, backend.size)) > 1:
        raise ValueError(
            f"scan: {name}={type(solver).__name__}(coarse_step=jm.{solver.coarse_step.__name__}) makes coarse steps "
            "by a larger step size, but f takes none: give h=... and f(carry, x, h), or a coarse step that does "
            "without (coarse_params=jm.all_layers with coarse_step=jm.picard(2), jm.zero_step), or jm.Newton(), "
            "jm.Sequential() or no solver."
        )
