"""The run through all layers as a function that can be differentiated: a plain scan, or a solve with its adjoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

import jax

from jaxmgrit._checks import check_pair, check_solver, check_state, check_step, check_step_size, named
from jaxmgrit._programs import cached
from jaxmgrit._pytree import merge, split, vary, varying_axes
from jaxmgrit.backend.base import Backend, check_parts
from jaxmgrit.solvers.newton.solver import Newton
from jaxmgrit.solvers.sequential import SEQUENTIAL, Sequential, match_segments
from jaxmgrit.system.network import Network, make_network
from jaxmgrit.system.plain import plain_scan
from jaxmgrit.system.reverse_only import differentiable_once, reverse_mode_only
from jaxmgrit.verbs.adjoint import adjoint_network
from jaxmgrit.verbs.state import outputs_network, solve_network

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, Layers, State, StepSize
    from jaxmgrit.solvers.base import Solver
    from jaxmgrit.system.step import Equation, Slot

PyTree = Any


def is_plain(solver: Solver | None, adjoint: Solver | None, backend: Backend, layers: int) -> bool:
    """Whether a call is the plain program: on one device, no solver is named or `Sequential` with one segment."""
    exact = all(s is None or (isinstance(s, Sequential) and (s.segment or 0) >= layers) for s in (solver, adjoint))
    return exact and backend.size == backend.data_size == 1


def chosen(
    solver: Solver | None, adjoint: Solver | None, backend: Backend, exact_on_many: Solver
) -> tuple[Solver, Solver]:
    """The solvers of a call that is not plain: those named, and exact ones in the place of those that are not."""
    exact = SEQUENTIAL if backend.size == 1 else exact_on_many
    for name, given in (("solver", solver), ("adjoint", adjoint)):
        if given is not None:
            check_solver(name, given)
    if adjoint is None and solver is not None and solver.own_adjoint:
        adjoint = solver
    return solver or exact, adjoint or exact


def plainly(
    step: Callable[..., PyTree],
    theta: Layers,
    u0: State,
    h: StepSize,
    layers: int,
    outputs: bool,
    reverse: bool = False,
    unroll: int | bool = 1,
) -> tuple[PyTree, PyTree]:
    """The last state and the outputs of all layers by the plain program; arguments as in `make_network`."""
    number, scalar, per_layer = check_step_size(h, layers, u0)
    program = _plain_program(step, number, layers, outputs, reverse, unroll)
    return program(theta, u0, scalar, per_layer)


def _plain_program(step: Callable[..., PyTree], *static: Any) -> Callable[..., tuple[PyTree, PyTree]]:
    # `scan` hands over its own callable, whose `f` is the user's.
    # A function that captures nothing is what it is; others may change between calls, as they may for `lax.scan`.
    function = getattr(step, "f", step)
    if isinstance(function, FunctionType) and function.__closure__ is None:
        return _remembered_program(step, *static)
    return _new_program(step, *static)


def _new_program(
    step: Callable[..., PyTree], number: float | None, layers: int, outputs: bool, reverse: bool, unroll: int | bool
) -> Callable[..., tuple[PyTree, PyTree]]:
    what, check = ("f", check_pair) if outputs else ("step", check_step)

    def program(theta: Layers, u0: State, scalar: Any, per_layer: Any) -> tuple[PyTree, PyTree]:
        def layer(u: State, inputs: Arrays) -> tuple[PyTree, PyTree]:
            own, size = inputs
            # Exactly one of the three is there, see `check_step_size`.
            h = number if number is not None else scalar if size is None else size
            with named(what, own, u):
                result = step(own, u, h)
            check(result, u, what)
            pair: tuple[PyTree, PyTree] = result if outputs else (result, None)
            return pair

        return plain_scan(layer, u0, (theta, per_layer), layers, reverse=reverse, unroll=unroll)

    return program


@cached
def _remembered_program(*static: Any) -> Callable[..., tuple[PyTree, PyTree]]:
    return jax.jit(_new_program(*static))


def solved(
    step: Callable[..., PyTree],
    theta: Layers,
    u0: State,
    h: StepSize,
    solver: Solver,
    adjoint: Solver,
    backend: Backend,
    outputs: bool,
    name: str,
) -> tuple[PyTree, PyTree, jax.Array]:
    """The last state, the outputs of all layers and the state solve's result code, differentiated by the adjoint.

    `name` is that of the public function, for messages; the other arguments are as in `make_network`.
    """
    u0 = check_state(u0, "init" if outputs else "u0")
    check_parts(u0, 0, backend.data_size)
    # Inside the user's `shard_map` all that is solved with varies alike; what the step closes over is as it was traced.
    axes = varying_axes((theta, u0, h))
    while True:
        theta, u0, h = vary((theta, u0, h), axes)
        # Under a data axis a step never meets the whole batch, so it is checked on one part.
        part = jax.eval_shape(partial(_first_part, parts=backend.data_size), u0)
        network = make_network(step, theta, part, h, solver, adjoint, outputs=outputs)
        # What the step closes over shows in its trace only, and may vary more: then all is made to, once more.
        if varying_axes(network.shared) <= axes:
            break
        axes |= varying_axes(network.shared)
    if axes and any(isinstance(one, Newton) for one in (solver, adjoint)):
        raise ValueError(
            f"{name}: jm.Newton inside a jax.shard_map over {', '.join(map(str, sorted(axes, key=str)))} is not "
            "supported, since each device iterates as often as its own part of the batch needs. Give "
            "backend=jm.Mesh(mesh, axis=..., data_axis=...) outside the shard_map, or solver= and adjoint= of jm.MGRIT."
        )
    solver, adjoint = match_segments(*(s.fitted(network.layers, u0, backend) for s in (solver, adjoint)))
    differentiable, others = split((network.slots, network.shared))
    problem = _Static(network.equation, network.layers, solver, adjoint, backend, name)
    # Forward mode is refused here, since `custom_vjp`'s own refusal would not say what to do.
    d_slots_and_shared, u0 = reverse_mode_only((differentiable, u0), name)
    return _solved(problem, d_slots_and_shared, others, u0)


def _first_part(state: PyTree, parts: int) -> PyTree:
    """The state of one part of the batch: what a step is evaluated with."""
    return state if parts == 1 else jax.tree.map(lambda x: x[: x.shape[0] // parts], state)


@dataclass(frozen=True, eq=False)  # compared by identity: a step may be an object that cannot be hashed
class _Static:
    """What of a solve is not an array."""

    equation: Equation
    layers: int
    solver: Solver
    adjoint: Solver
    backend: Backend
    name: str

    def network(self, differentiable: Arrays, others: Arrays) -> Network:
        return Network(self.equation, self.layers, *merge(differentiable, others))

    def once(self, f: Callable[..., Any], solver: Solver) -> Callable[..., Any]:
        """The solve as it is, or where it stops by a tolerance with an error for its own derivative."""
        return differentiable_once(f, self.name) if solver.has_tolerance else f


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _solved(problem: _Static, differentiable: Arrays, others: Arrays, u0: State) -> Any:
    return _forward(problem, differentiable, others, u0)[0]


def _forward(problem: _Static, differentiable: Arrays, others: Arrays, u0: State) -> Any:
    backend = problem.backend

    def solve(differentiable: Arrays, others: Arrays, u0: State) -> Any:
        network = problem.network(differentiable, others)
        sol = solve_network(network, backend.split_batch(u0), problem.solver, None, backend)
        return backend.join_batch(sol.u_final), outputs_network(network, sol, backend), sol

    u_final, ys, sol = problem.once(solve, problem.solver)(differentiable, others, u0)
    # Of the states only C-points are kept; the adjoint's sweeps recompute the F-points.
    return (u_final, ys, sol.result), (differentiable, others, sol)


def _backward(problem: _Static, kept: Any, cotangents: Arrays) -> Any:
    backend = problem.backend
    # The third is that of the result code, an integer.
    u_bar, ys_bar, _ = cotangents
    # Outputs that cannot be differentiated have no cotangent.
    ys_bar = jax.tree.map(lambda x: None if x.dtype == jax.dtypes.float0 else x, ys_bar)

    def solve(kept: Any, u_bar: PyTree, ys_bar: PyTree) -> Any:
        differentiable, others, sol = kept
        network = problem.network(differentiable, others)
        # <y_bar, y> enters the adjoint as a running cost's derivative does.
        network = replace(network, slots=network.slots._replace(y_bar=ys_bar))
        lam_final = backend.split_batch(u_bar)
        adj, swept = adjoint_network(
            network, sol, lam_final, problem.adjoint, None, backend, gradients=True, step_sizes=True
        )
        assert swept is not None
        d_slots: Slot = jax.tree.map(lambda x: x[: problem.layers], backend.gather(swept.slots))
        return (d_slots, swept.shared), backend.join_batch(adj.lam_initial)

    try:
        gradients, lam_initial = problem.once(solve, problem.adjoint)(kept, u_bar, ys_bar)
    except NameError as error:
        # JAX runs a custom rule's way back outside the `vmap` that has named the axis.
        if "axis name" not in str(error):
            raise
        raise NameError(
            f"{problem.name}: {error} The gradient of a solve by a named solver cannot use the axis of a vmap around "
            "it (jax.lax.pmean(u, axis_name), say): give the whole batch as one state and take jnp.mean over its axis, "
            "differentiate inside the vmap, or leave out solver= and adjoint= on one device."
        ) from error
    # None: integers and keys have no cotangent.
    return gradients, None, lam_initial


_solved.defvjp(_forward, _backward)
