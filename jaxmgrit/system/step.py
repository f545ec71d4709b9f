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

from jaxmgrit._pytree import merge, real_dtype, split

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
    """A layer's next state and running cost, and what takes cotangents of the two back (a pytree, as in `jax.vjp`)."""

    after: PyTree
    cost: Any
    pullback: Any


@dataclass(frozen=True)
class Equation:
    """The state equation u^{n+1} = Phi(theta^n, u^n, h) and its transpose.

    Attributes:
        step: (theta, u, h, *constants) -> u_next.
        running_cost: (theta, u, h) -> scalar, or None.
        coarse_step: (step, theta, u, h, m) -> u_next, used on all levels but the finest.
        parts: of the batch; the running cost of one is a mean over its samples and counts 1/parts.
        h: a step size that is a Python number, the same for all layers; None if it is in the slots or shared.
    """

    step: Callable[..., PyTree]
    running_cost: Callable[..., Any] | None = None
    coarse_step: Callable[..., PyTree] | None = None
    h: float | None = None
    parts: int = 1

    def advance(self, slot: Slot, u: PyTree, shared: Shared, stride: int = 1, fine: bool = True) -> PyTree:
        """One step of a level whose steps replace `stride` layers."""
        h = self._step_size(slot, shared, stride)
        if fine:
            return self.step(slot.theta, u, h, *shared.constants)

        def step(theta: PyTree, state: PyTree, size: Any) -> PyTree:
            return self.step(theta, state, size, *shared.constants)

        assert self.coarse_step is not None
        return self.coarse_step(step, slot.theta, u, h, stride)

    def transpose(self, slot: Slot, u: PyTree, shared: Shared, lam: PyTree, stride: int) -> PyTree:
        """(d advance / d u)^T lam at the state u, on a coarse level."""
        _, pullback = jax.vjp(lambda v: self.advance(slot, v, shared, stride, fine=False), u)
        return pullback(lam)[0]

    def vjp_state(self, slot: Slot, u: PyTree, shared: Shared) -> Vjp:
        """One layer with its pullback to the state: `pullback((lam, 1))` is (lam of the layer before,)."""
        (after, cost), pullback = jax.vjp(keeping_little(lambda v: self._advance_and_cost(slot, v, shared), u), u)
        return Vjp(after, cost, pullback)

    def vjp_all(self, slot: Slot, u: PyTree, shared: Shared, step_sizes: bool) -> Vjp:
        """One layer with its pullback to its parameters, its state and what is shared, in this order.

        With `step_sizes` the first is a slot, with the cotangent of h where h is per layer; else the parameters alone.
        """
        differentiable, others = split(slot if step_sizes else slot.theta)
        d_shared, fixed = split(shared)

        def f(d: PyTree, v: PyTree, s: PyTree) -> Any:
            own = merge(d, others)
            own = own if step_sizes else Slot(own, slot.h)
            return self._advance_and_cost(own, v, merge(s, fixed) if step_sizes else shared)

        (after, cost), pullback = jax.vjp(keeping_little(f, u), differentiable, u, d_shared if step_sizes else Shared())
        return Vjp(after, cost, pullback)

    def _advance_and_cost(self, slot: Slot, u: PyTree, shared: Shared) -> tuple[PyTree, Any]:
        cost = jnp.zeros((), real_dtype(u)) if self.running_cost is None else self.cost(slot, u, shared)
        return self.advance(slot, u, shared), cost

    def cost(self, slot: Slot, u: PyTree, shared: Shared) -> Any:
        """The running cost of one layer."""
        assert self.running_cost is not None
        cost = self.running_cost(slot.theta, u, self._step_size(slot, shared, 1))
        return cost if self.parts == 1 else cost / self.parts

    def _step_size(self, slot: Slot, shared: Shared, stride: int) -> Any:
        if slot.h is not None:
            return slot.h
        return (self.h if self.h is not None else shared.h) * stride


# Cheap enough to be computed again in the pullback from what is kept: one pass over values that are at hand.
_CHEAP = frozenset(
    "abs add add_any and broadcast_in_dim ceil clamp complex concatenate conj convert_element_type copy dynamic_slice "
    "eq floor ge gt imag integer_pow is_finite le lt max min mul ne neg not or pad real reshape rev round select_n "
    "sign slice square squeeze sub transpose xor".split()
)


# States of so many bytes do not stay in the cache until the pullback: it is faster to compute them again.
_LARGE_STATE = 1 << 16


def keeping_little(f: Callable[..., Any], state: PyTree) -> Callable[..., Any]:
    """The function, whose pullback keeps only its arguments and, of small states, what is costly to compute from them.

    A tanh layer, say, keeps its state and the tanh, from which the derivative is a subtraction, and no transposed
    weights: two thirds of the memory traffic.
    """
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    return jax.checkpoint(f, prevent_cse=False, policy=_worth_keeping if size < _LARGE_STATE else None)


def _worth_keeping(primitive: Any, *operands: Any, **_: Any) -> bool:
    # JAX cannot keep complex intermediate values; they are computed again.
    complex_ = primitive.name == "fft" or any(jnp.issubdtype(x.dtype, jnp.complexfloating) for x in operands)
    return primitive.name not in _CHEAP and not complex_
