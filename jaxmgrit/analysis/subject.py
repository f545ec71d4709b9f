"""A network that is looked at: its gradient by any pair of solvers, how cycles converge, and how long it takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.extend.core as core
import jax.numpy as jnp

from jaxmgrit._pytree import PyTree, euclidean_norm, is_inexact, merge, split, subtract
from jaxmgrit.backend.base import Backend, check_parts
from jaxmgrit.propagate import propagate
from jaxmgrit.solvers.sequential import Sequential, match_segments
from jaxmgrit.system.network import make_network
from jaxmgrit.verbs.adjoint import adjoint_network
from jaxmgrit.verbs.state import solve_network

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Layers, State, StepSize
    from jaxmgrit.solvers.base import Solver

# Calls of one program, of which the quickest counts: what else the machine does only ever adds to a time. All together
# take about so many seconds at most.
CALLS, LONGEST = 20, 0.5

_RELAY = {"solver": Sequential(), "adjoint": Sequential()}


class Clock:
    """How much of the time that measuring may take is left, the same answer on all processes.

    Args:
        seconds: it may take.
        backend: of the processes.
    """

    def __init__(self, seconds: float, backend: Backend) -> None:
        self._end = time.monotonic() + seconds
        self._backend = backend

    def has(self, seconds: float) -> bool:
        """Whether so many seconds are left."""
        # Agreed on: processes that go different ways wait for each other for ever.
        return bool(self._backend.agreed(time.monotonic() + seconds < self._end))


class Seen(NamedTuple):
    """What one program was seen to do.

    Attributes:
        gradient: of the loss with respect to the layers, the state and what the step closes over.
        norms: recorded residual norms of state and adjoint.
        seconds: of one call, the quickest.
        cost: seconds that measuring took, compilation included.
        call: calls the compiled program.
    """

    gradient: PyTree
    norms: tuple[list[float], list[float]]
    seconds: float
    cost: float
    call: Callable[[], PyTree]


@dataclass(frozen=True, eq=False)
class Subject:
    """A network, the loss whose gradient is wanted, and the backend it is measured on.

    Attributes:
        step: Phi(theta, u, h) -> u_next.
        theta: parameters, leading axis N.
        u0: first state.
        h: step size, a scalar or one per layer.
        loss: (u^N) -> scalar.
        layers: N.
        backend: where programs run.
        constants: floating-point arrays that the step closes over: shared weights, say.
    """

    step: Callable[..., PyTree]
    theta: Layers
    u0: State
    h: StepSize
    loss: Callable[[PyTree], jax.Array]
    layers: int
    backend: Backend
    constants: tuple[Any, ...] = ()

    def opened(self) -> Subject:
        """With what the step closes over known, so that its gradient is computed as well."""
        one, u0, h = self._layer()
        known: list[Any] = []
        for x in _trace(self.step, one, u0, h)[0].consts:
            if is_inexact(x) and jnp.ndim(x) > 0 and not any(x is y for y in known):
                known.append(x)
        return replace(self, constants=tuple(known))

    def first(self, layers: int) -> Subject:
        """The network of the first layers alone."""
        theta = jax.tree.map(lambda x: x[:layers], self.theta)
        return replace(self, theta=theta, h=self.h if jnp.ndim(self.h) == 0 else self.h[:layers], layers=layers)

    def part(self) -> PyTree:
        """Shapes of the state of one part of the batch."""
        parts = self.backend.data_size
        check_parts(self.u0, 0, parts)
        return jax.eval_shape(
            lambda u: u if parts == 1 else jax.tree.map(lambda x: x[: x.shape[0] // parts], u), self.u0
        )

    def _layer(self) -> tuple[PyTree, PyTree, Any]:
        """Shapes of one layer's parameters and of the state of one part of the batch, and one layer's step size."""
        one = jax.eval_shape(lambda theta: jax.tree.map(lambda x: x[0], theta), self.theta)
        return one, self.part(), self.h if jnp.ndim(self.h) == 0 else self.h[0]

    def with_constants(self, constants: tuple[Any, ...]) -> Callable[..., PyTree]:
        """The step with other values in the place of those it closes over."""
        if not constants:
            return self.step

        def step(theta: Layers, u: State, h: StepSize) -> PyTree:
            # A closure cannot be given other values; the constants of its traced program can.
            closed, structure = _trace(self.step, theta, u, h)
            values = [_other(x, self.constants, constants) for x in closed.consts]
            # A step size that is a number is inside the program.
            arrays = (theta, u) if _is_number(h) else (theta, u, h)
            program = core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, values))
            return jax.tree.unflatten(structure, program(*jax.tree.leaves(arrays)))

        return step

    def value(self, theta: Layers, u0: State) -> jax.Array:
        """The loss by a sequential run."""
        exact: Any = {} if self.backend.size == self.backend.data_size == 1 else _RELAY
        return self.loss(propagate(self.step, theta, u0, h=self.h, backend=self.backend, **exact))

    def one(self, theta: Layers, u: State) -> PyTree:
        """One layer."""
        return self.step(theta, u, self._layer()[2])

    def _program(self, solver: Solver, adjoint: Solver) -> Callable[..., Any]:
        """(differentiable leaves of theta, u0, constants) -> the gradient, and recorded residual norms."""
        others = split(self.theta)[1]
        if self.backend.size == self.backend.data_size == 1 and isinstance(solver, Sequential) and solver == adjoint:
            # What `propagate` makes of it, which may be the plain program.
            def exact(theta: Layers, u0: State, constants: tuple[Any, ...]) -> Any:
                def value(theta: Layers, u0: State, constants: tuple[Any, ...]) -> jax.Array:
                    step = self.with_constants(constants)
                    whole = merge(theta, others)
                    return self.loss(propagate(step, whole, u0, h=self.h, solver=solver, adjoint=adjoint))

                return jax.grad(value, argnums=(0, 1, 2))(theta, u0, constants), ([], [])

            return exact

        def iterated(theta: Layers, u0: State, constants: tuple[Any, ...]) -> Any:
            backend, (_, part, _) = self.backend, self._layer()
            network = make_network(self.with_constants(constants), merge(theta, others), part, self.h, solver, adjoint)
            own, reverse = match_segments(*(s.fitted(self.layers, u0, backend) for s in (solver, adjoint)))
            sol = solve_network(network, backend.split_batch(u0), own, None, backend)
            lam = backend.split_batch(jax.grad(self.loss)(backend.join_batch(sol.u_final)))
            # `step_sizes` asks for the gradient of what the step closes over as well.
            adj, swept = adjoint_network(network, sol, lam, reverse, None, backend, gradients=True, step_sizes=True)
            assert swept is not None
            layers = jax.tree.map(lambda x: x[: self.layers], backend.gather(swept.slots.theta))
            # By identity: under `jit` the constants are the very tracers that the step was traced with.
            shared = tuple(
                _other(x, network.shared.constants, swept.shared.constants, jnp.zeros_like(x)) for x in constants
            )
            gradient = layers, backend.join_batch(adj.lam_initial), shared
            return gradient, (sol.residual_norms, adj.residual_norms)

        return iterated

    def look(self, solver: Solver, adjoint: Solver) -> Seen:
        """Compile the gradient's program, run it, and time it.

        Raises:
            TypeError, ValueError: a solver that cannot take the network.
        """
        start = time.monotonic()
        program = jax.jit(self._program(solver, adjoint))
        arguments = split(self.theta)[0], self.u0, self.constants

        def call() -> PyTree:
            return jax.block_until_ready(program(*arguments))

        gradient, (state, reverse) = call()
        seconds = self.timed(call)
        return Seen(gradient, (_recorded(state), _recorded(reverse)), seconds, time.monotonic() - start, call)

    def timed(self, call: Callable[[], PyTree]) -> float:
        """Seconds of the quickest call of a compiled program, the same on all processes."""
        samples = [stopped(call)]
        # Every call is one of all processes, so its number must be the same.
        calls = self.backend.agreed(min(CALLS, 1 + int(LONGEST / samples[0])))
        samples += [stopped(call) for _ in range(int(calls) - 1)]
        return float(self.backend.agreed(min(samples)))

    def distance(self, a: PyTree, b: PyTree) -> float:
        """Relative Euclidean distance of two gradients; infinite where one is not finite.

        Of layers and state together, or of what the step closes over, whichever is worse.
        """
        parts = (_distance(a[:2], b[:2]), _distance(a[2], b[2]) if self.constants else 0.0)
        return float(self.backend.agreed(max(parts)))


def stopped(call: Callable[[], PyTree]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _distance(a: PyTree, b: PyTree) -> float:
    size, off = float(euclidean_norm(b)), float(euclidean_norm(subtract(a, b)))
    off = off / size if size > 0 else off
    return off if math.isfinite(off) else math.inf


def _recorded(norms: Arrays) -> list[float]:
    return [x for x in map(float, norms) if x != -1]


def _is_number(h: StepSize) -> bool:
    return isinstance(h, (int, float))


def _trace(step: Callable[..., PyTree], theta: Layers, u: State, h: StepSize) -> tuple[Any, Any]:
    """The step as a program of JAX, and its result's structure; a step size that is a number stays one."""
    if _is_number(h):
        closed, shapes = jax.make_jaxpr(lambda theta, u: step(theta, u, h), return_shape=True)(theta, u)
    else:
        closed, shapes = jax.make_jaxpr(step, return_shape=True)(theta, u, h)
    return closed, jax.tree.structure(shapes)


def _other(x: Any, known: Any, others: Any, default: Any = None) -> Any:
    """The entry of `others` where x is in `known`; else x itself, or the default."""
    for one, other in zip(known, others, strict=True):
        if one is x:
            return other
    return x if default is None else default
