"""What a solve returns: values, C-points to start the next solve from, residual history, and a result code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import jax
import numpy as np

from jaxmgrit._checks import check_backend, check_like, check_type
from jaxmgrit._pytree import repeat
from jaxmgrit.backend.base import SHARDED, SHARDED_STATES, STATE, Backend
from jaxmgrit.solvers.result import Result, check
from jaxmgrit.system.step import SHARED_SPECS

if TYPE_CHECKING:
    from jaxmgrit._types import State
    from jaxmgrit.system.network import Network
    from jaxmgrit.system.partition import Level

PyTree = Any

# Of what `state_data` gives.
STATE_SPECS = (SHARDED, STATE, SHARED_SPECS, SHARDED_STATES)


class CPoints(NamedTuple):
    """The C-points of the finest level: `initial` is point 0, `ends` the value at the end of each interval.

    `ends` has one entry per interval, padding included, in the order of the layers, and is sharded over the backend.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> theta, u0 = 0.1 * jnp.ones((64, 4, 4)), jnp.ones((2, 4))
        >>> sol = jm.solve(step, theta, u0, h=1 / 64, solver=jm.MGRIT(4, cycles=3))
        >>> again = jm.solve(step, 1.01 * theta, u0, h=1 / 64, solver=jm.MGRIT(4, cycles=1), guess=sol.c_points)
        >>> zeros = jm.CPoints(*jax.tree.map(jnp.zeros_like, sol.c_points))
    """

    initial: PyTree
    ends: PyTree


class _Checked:
    residual_norms: jax.Array
    cycles: jax.Array
    result: jax.Array
    scale: jax.Array
    level: Level
    tolerance: bool

    def check(self) -> Self:
        """Return the solution itself, or raise `SolveError` with the sentence of its result (host only)."""
        check(self.result, tolerance=self.tolerance, details=self.residuals)
        return self

    @property
    def residuals(self) -> str:
        """The last recorded residual relative to the first and to the values, in words (host only)."""
        norms = np.asarray(self.residual_norms)
        # Under `vmap` one object holds many solves.
        if norms.ndim != 1:
            return f"Residuals of {norms.shape[:-1]} solves."
        # -1 stands where nothing was recorded.
        norms = norms[norms != -1]
        if not norms.size:
            return "No residual was recorded."
        first, last, scale = float(norms[0]), float(norms[-1]), float(self.scale)
        parts = [f"Last residual {last:.2g}"]
        parts += [f"{last / first:.2g} of the first"] if first > 0 and norms.size > 1 else []
        parts += [f"{last / scale:.2g} of the values"] if scale > 0 else []
        return ", ".join(parts) + "."

    def __str__(self) -> str:
        name, shape = type(self).__name__, f"{self.level.steps} layers in intervals of {self.level.factor}"
        # Inside `jit`, or mapped to shapes or specs, a solution can be printed too.
        if isinstance(self.result, jax.core.Tracer) or not isinstance(self.result, jax.Array | np.ndarray):
            return f"{name}: {shape}, without values."
        if np.ndim(self.result):
            codes = [Result(code).name for code in sorted(set(np.asarray(self.result).ravel().tolist()))]
            return f"{name}: {shape}, {np.shape(self.result)} solves: {', '.join(codes)}."
        code = Result(int(self.result))
        return f"{name}: {shape}, {int(self.cycles)} cycles, {code.name}. {self.residuals} {code.sentence}"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Solution(_Checked):
    """The state, as `solve` returns it.

    Attributes:
        u_final: u^N.
        c_points: opaque; `guess=` of a later solve accepts it, and any `jax.tree.map` of it.
        residual_norms: (cycles,) recorded norms, -1 where there is none (after stopping, a skipped cycle);
            empty for a sequential solve.
        cycles: how many were done.
        result: code, see `Result`.
        scale: norm of all C-points, to compare residual norms with; 0 for a sequential solve.
        level: the partition of the layers the C-points belong to.
        tolerance: whether a tolerance was asked for.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> theta, u0 = 0.1 * jnp.ones((64, 4, 4)), jnp.ones((2, 4))
        >>> sol = jm.solve(step, theta, u0, h=1 / 64, solver=jm.MGRIT(4, cycles=3))
        >>> sol.u_final.shape, sol.residual_norms.shape, int(sol.cycles)
        ((2, 4), (3,), 3)
    """

    u_final: PyTree
    c_points: CPoints
    residual_norms: jax.Array
    cycles: jax.Array
    result: jax.Array
    scale: jax.Array
    # Static: the partition decides which program solves on from here.
    level: Level = field(metadata={"static": True})
    tolerance: bool = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AdjointSolution(_Checked):
    """The adjoint, as `adjoint_solve` returns it.

    Attributes:
        lam_initial: lam^0.
        c_points: opaque, as in `Solution`; its `initial` entry is lam^N.
        residual_norms: (cycles,) recorded norms, -1 where there is none (after stopping, a skipped cycle);
            empty for a sequential solve.
        cycles: how many were done.
        result: code, see `Result`.
        scale: norm of all C-points, to compare residual norms with; 0 for a sequential solve.
        level: the partition of the layers the C-points belong to.
        tolerance: whether a tolerance was asked for.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmgrit as jm
        >>> step = lambda theta, u, h: u + h * jnp.tanh(u @ theta)
        >>> theta, u0 = 0.1 * jnp.ones((64, 4, 4)), jnp.ones((2, 4))
        >>> sol = jm.solve(step, theta, u0, h=1 / 64, solver=jm.MGRIT(4, cycles=3))
        >>> adj = jm.adjoint_solve(step, theta, sol, sol.u_final, h=1 / 64)
        >>> adj.lam_initial.shape, adj.residual_norms.shape
        ((2, 4), (2,))
    """

    lam_initial: PyTree
    c_points: CPoints
    residual_norms: jax.Array
    cycles: jax.Array
    result: jax.Array
    scale: jax.Array
    level: Level = field(metadata={"static": True})
    tolerance: bool = field(metadata={"static": True})


def check_solution(sol: Any) -> None:
    """Raise a TypeError unless `sol` is what `solve` returns."""
    check_type(sol, Solution, "sol", "give what jm.solve returned.")


def check_partition(level: Level, layers: int, backend: Backend, name: str) -> None:
    """Raise a ValueError unless a solution belongs to a network of so many layers on this backend."""
    check_backend(backend)
    if level.steps != layers:
        raise ValueError(
            f"{name} belongs to a network of {level.steps} layers, but theta has {layers}; solve again with this theta."
        )
    if level.devices != backend.size:
        raise ValueError(
            f"{name} was computed on {level.devices} devices, but backend has {backend.size}; pass the "
            "backend it was made with."
        )


def check_guess(guess: CPoints | None, initial: State, level: Level, backend: Backend) -> None:
    """Raise a ValueError unless a guess holds the C-points of this partition."""
    if guess is None:
        return
    # What a process has of the C-points: its own block, or all of them.
    expected = jax.eval_shape(lambda: CPoints(initial, repeat(initial, level.intervals // backend.blocks)))
    remedy = (
        "Give the c_points of a solve of the same network with the same coarsening factor and number of devices "
        "(or a jax.tree.map of them)."
    )
    check_like(guess, expected, "guess", remedy)


def state_data(network: Network, sol: Solution, backend: Backend) -> tuple[PyTree, ...]:
    """What a program needs to know of a solved state: slots, u^0, what is shared, C-points (see STATE_SPECS)."""
    return network.on(sol.level, backend), sol.c_points.initial, network.shared, sol.c_points.ends
