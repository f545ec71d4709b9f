"""One step of a level, for the state and for the adjoint: the only code that calls the user's Phi.

A slot is `(theta, h)`: one layer's parameters and its step size, None where the step size is one scalar for all. What
all layers share (a traced scalar step size, arrays that the user's step closes over) is `shared`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmgrit.coarsen import same_step
from jaxmgrit.pytree import merge, real_dtype, split

PyTree = Any


class Slot(NamedTuple):
    """One layer: its parameters, and its step size if there is one per layer."""

    theta: PyTree
    h: Any = None


class Shared(NamedTuple):
    """What all layers share: a traced scalar step size, and arrays the step closes over."""

    h: Any = None
    constants: tuple[Any, ...] = ()


class Vjp(NamedTuple):
    """Cotangents of one layer: of its state, of the differentiable leaves of its slot and of what is shared."""

    u: PyTree
    slot: PyTree
    shared: PyTree
    cost: Any


@dataclass(frozen=True)
class Equation:
    """The state equation u^{n+1} = Phi(theta^n, u^n, h) and its transpose.

    Attributes:
        step: (theta, u, h, *constants) -> u_next.
        running_cost: (theta, u, h) -> scalar, or None.
        coarse_step: (step, theta, u, h, m) -> u_next, used on all levels but the finest.
        h: a step size that is a Python number, the same for all layers; None if it is in the slots or shared.
    """

    step: Callable[..., PyTree]
    running_cost: Callable[..., Any] | None = None
    coarse_step: Callable[..., PyTree] = same_step
    h: float | None = None

    def advance(self, slot: Slot, u: PyTree, shared: Shared, stride: int = 1, fine: bool = True) -> PyTree:
        """One step of a level whose steps replace `stride` layers."""
        h = self._step_size(slot, shared, stride)
        if fine:
            return self.step(slot.theta, u, h, *shared.constants)

        def step(theta: PyTree, state: PyTree, size: Any) -> PyTree:
            return self.step(theta, state, size, *shared.constants)

        return self.coarse_step(step, slot.theta, u, h, stride)

    def transpose(
        self, slot: Slot, u: PyTree, shared: Shared, lam: PyTree, stride: int = 1, fine: bool = True
    ) -> PyTree:
        """(d advance / d u)^T lam at the state u; on the finest level plus the running cost's derivative."""
        if fine and self.running_cost is not None:
            _, pullback = jax.vjp(lambda v: self._advance_and_cost(slot, v, shared), u)
            return pullback((lam, self._one(slot, u, shared)))[0]
        _, pullback = jax.vjp(lambda v: self.advance(slot, v, shared, stride, fine), u)
        return pullback(lam)[0]

    def gradient(self, slot: Slot, u: PyTree, shared: Shared, lam: PyTree, step_sizes: bool) -> Vjp:
        """The transpose on the finest level, with the cotangents of the layer's parameters and of what is shared.

        With `step_sizes` also those of h, where it is per layer or shared.
        """
        differentiable, others = split(slot if step_sizes else slot.theta)

        def f(d: PyTree, v: PyTree, s: Shared) -> Any:
            own = merge(d, others)
            own = own if step_sizes else Slot(own, slot.h)
            return self._advance_and_cost(own, v, s if step_sizes else shared)

        (_, cost), pullback = jax.vjp(f, differentiable, u, shared if step_sizes else Shared())
        d_slot, d_u, d_shared = pullback((lam, jnp.ones_like(cost)))
        return Vjp(d_u, d_slot if step_sizes else Slot(d_slot), d_shared, cost)

    def _advance_and_cost(self, slot: Slot, u: PyTree, shared: Shared) -> tuple[PyTree, Any]:
        cost = jnp.zeros((), real_dtype(u)) if self.running_cost is None else self.cost(slot, u, shared)
        return self.advance(slot, u, shared), cost

    def cost(self, slot: Slot, u: PyTree, shared: Shared) -> Any:
        """The running cost of one layer."""
        assert self.running_cost is not None
        return self.running_cost(slot.theta, u, self._step_size(slot, shared, 1))

    def _one(self, slot: Slot, u: PyTree, shared: Shared) -> Any:
        return jnp.ones((), jax.eval_shape(self.cost, slot, u, shared).dtype)

    def _step_size(self, slot: Slot, shared: Shared, stride: int) -> Any:
        if slot.h is not None:
            return slot.h
        return (self.h if self.h is not None else shared.h) * stride
