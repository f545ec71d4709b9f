"""One step of a level, for the state and for the adjoint: the only code that calls the user's Phi.

A slot is `(theta, h)`: one layer's parameters and its step size, None where the step size is one scalar for all. What
all layers share (a traced scalar step size, arrays that the step closes over, what it is given besides) is `shared`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmgrit._pytree import merge, real_dtype, size_in_bytes, split
from jaxmgrit.backend.base import REPLICATED, STATE
from jaxmgrit.system.kept_layers import Kept, over_kept_layers

if TYPE_CHECKING:
    from jaxmgrit._types import Arrays, State
    from jaxmgrit.system.programs import Programs

PyTree = Any


class Slot(NamedTuple):
    """One layer: its parameters, its step size if there is one per layer, and the cotangent of its output, if any."""

    theta: PyTree
    h: Any = None
    y_bar: PyTree = None
    kept: Kept | None = None
    """Of a coarse slot that keeps all its layers; theta (and h, if there is one per layer) then have them as axis."""


class Given(NamedTuple):
    """What the step is given in a fourth argument, the same for all layers.

    Attributes:
        params: parameters that all layers share; differentiated.
        whole: what every part of the batch is given alike.
        parts: what belongs to a part of the batch: leading axis the samples (or whatever a data axis cuts).
    """

    params: PyTree = None
    whole: PyTree = None
    parts: PyTree = None


class Shared(NamedTuple):
    """What all layers share: a traced scalar step size, arrays the step closes over, and what it is given."""

    h: Any = None
    constants: tuple[Any, ...] = ()
    given: Given = Given()

    def differentiated(self, all_of_it: bool) -> tuple[Shared, Shared]:
        """As by `split`: the leaves of the given parameters, or all leaves, that are differentiated; the others."""
        if all_of_it:
            pair: tuple[Shared, Shared] = split(self)
            return pair
        own, fixed = split(self.given.params)
        nothing: Shared = jax.tree.map(lambda _: None, self)
        return (
            nothing._replace(given=nothing.given._replace(params=own)),
            self._replace(given=self.given._replace(params=fixed)),
        )


SHARED_SPECS = Shared(REPLICATED, REPLICATED, Given(REPLICATED, REPLICATED, STATE))
"""What of it is spread, see `Backend.lift`."""


class Vjp(NamedTuple):
    """A layer's next state and running cost, and what takes cotangents back (a pytree, as in `jax.vjp`).

    What it takes is the pair (adjoint of the next state, `seed`): the cotangent of the running cost, 1, or of the
    layer's output, which enters the adjoint in the same way.
    """

    after: PyTree
    cost: Any
    pullback: Any
    seed: PyTree


@dataclass(frozen=True)
class Equation:
    """The state equation u^{n+1} = Phi(theta^n, u^n, h) and its transpose.

    Attributes:
        step: (theta, u, h) -> u_next; with `outputs` (u_next, y); with `given` of one argument more.
        running_cost: (theta, u, h) -> scalar, or None.
        coarse_step: (step, theta, u, h, m) -> u_next, used on all levels but the finest.
        parts: of the batch; the running cost of one is a mean over its samples and counts 1/parts.
        h: a step size that is a Python number, the same for all layers; None if it is in the slots or shared.
        given: whether step and running cost have a fourth parameter, `Shared.given`.
        outputs: whether every layer has an output y beside its next state. Then there is no running cost: what
            <y_bar, y> would be as a running cost is pulled back instead.
        programs: the traces of step and coarse steps; None: they are called as they are.
    """

    step: Callable[..., PyTree]
    running_cost: Callable[..., Any] | None = None
    coarse_step: Callable[..., PyTree] | None = None
    h: float | None = None
    parts: int = 1
    outputs: bool = False
    given: bool = False
    programs: Programs | None = field(default=None, compare=False)

    def advance(self, slot: Slot, u: State, shared: Shared, stride: int = 1, fine: bool = True) -> PyTree:
        """One step of a level whose steps replace `stride` layers."""
        if fine:
            return self.advance_with_output(slot, u, shared)[0]
        h = self._step_size(slot, shared, stride)
        # A coarse slot that keeps its layers has each one's step size, shape (stride,), not their sum.
        if slot.kept is not None:
            h = jnp.broadcast_to(jnp.asarray(self._step_size(slot, shared, 1), real_dtype(u)), (stride,))

        def coarse(theta: PyTree, u: PyTree, h: Any, kept: Kept | None, given: Given, constants: PyTree) -> PyTree:
            # What may be traced comes in as arguments: later evaluations of this program hand in other values.
            own = shared._replace(given=given, constants=constants)

            def step(theta: PyTree, u: PyTree, h: Any) -> PyTree:
                result = self._step(theta, u, h, own)
                return result[0] if self.outputs else result

            assert self.coarse_step is not None
            if kept is not None:
                return over_kept_layers(self.coarse_step, step, theta, u, h, stride, kept)
            return self.coarse_step(step, theta, u, h, stride)

        # The library's own coarse steps close over nothing: it is enough that the step is traced.
        if self.programs is None or getattr(self.coarse_step, "__module__", "").startswith("jaxmgrit."):
            return coarse(slot.theta, u, h, slot.kept, shared.given, shared.constants)
        # By identity, since an object that is a coarse step need not be hashable.
        name = "coarse", id(self.coarse_step), stride
        return self.programs.run(name, coarse, (slot.theta, u, h, slot.kept, shared.given), shared.constants)

    def _step(self, theta: PyTree, u: PyTree, h: Any, shared: Shared) -> PyTree:
        args = (theta, u, h, shared.given) if self.given else (theta, u, h)
        if self.programs is None:
            return self.step(*args)
        return self.programs.run("step", lambda *args: self.step(*args[:-1]), args, shared.constants)

    def call(self, slot: Slot, u: State, shared: Shared) -> PyTree:
        """What the user's function returns for one layer."""
        return self._step(slot.theta, u, self._step_size(slot, shared, 1), shared)

    def advance_with_output(self, slot: Slot, u: State, shared: Shared) -> tuple[PyTree, PyTree]:
        """One layer: its next state, and its output (None without outputs)."""
        result = self.call(slot, u, shared)
        return result if self.outputs else (result, None)

    def transpose(self, slot: Slot, u: State, shared: Shared, lam: State, stride: int) -> PyTree:
        """(d advance / d u)^T lam at the state u, on a coarse level."""
        _, pullback = jax.vjp(lambda v: self.advance(slot, v, shared, stride, fine=False), u)
        return pullback(lam)[0]

    def vjp_state(self, slot: Slot, u: State, shared: Shared) -> Vjp:
        """One layer with its pullback to the state: `pullback((lam, seed))` is (lam of the layer before,)."""
        return self._vjp(lambda v: self._layer(slot, v, shared), slot, u, u)

    def vjp_all(self, slot: Slot, u: State, shared: Shared, step_sizes: bool, together: bool = False) -> Vjp:
        """One layer with its pullback to its parameters, its state and what is shared, in this order.

        With `step_sizes` the first is a slot, with the cotangent of h where h is per layer, and the last that of all
        that is shared; else of parameters alone.
        With `together` slot and state have a leading axis, of layers side by side, over which the cotangent of what is
        shared is summed: one product for all rather than one each.
        """
        run = jax.vmap(self._layer, in_axes=(0, 0, None)) if together else self._layer
        # y_bar is a cotangent itself: it seeds the pullback and is not differentiated.
        differentiable, others = split(slot._replace(y_bar=None) if step_sizes else slot.theta)
        d_shared, fixed = shared.differentiated(step_sizes)

        def f(d: State, v: Arrays, s: PyTree) -> Any:
            own = merge(d, others)
            own = own if step_sizes else Slot(own, slot.h)
            return run(own, v, merge(s, fixed))

        return self._vjp(f, slot, u, differentiable, u, d_shared)

    def _vjp(self, f: Callable[..., Any], slot: Slot, u: State, *args: PyTree) -> Vjp:
        (after, cost), pullback = jax.vjp(keeping_little(f, u), *args)
        if self.outputs:
            return Vjp(after, jnp.zeros((), real_dtype(u)), pullback, slot.y_bar)
        return Vjp(after, cost, pullback, jnp.ones_like(cost))

    def _layer(self, slot: Slot, u: State, shared: Shared) -> tuple[PyTree, Any]:
        """The next state, and what `Vjp.seed` is the cotangent of: differentiable outputs, or the running cost."""
        after, y = self.advance_with_output(slot, u, shared)
        if self.outputs:
            return after, split(y)[0]
        return after, jnp.zeros((), real_dtype(u)) if self.running_cost is None else self.cost(slot, u, shared)

    def cost(self, slot: Slot, u: State, shared: Shared) -> Any:
        """The running cost of one layer."""
        assert self.running_cost is not None
        given = (shared.given,) if self.given else ()
        cost = self.running_cost(slot.theta, u, self._step_size(slot, shared, 1), *given)
        return cost if self.parts == 1 else cost / self.parts

    def _step_size(self, slot: Slot, shared: Shared, stride: int) -> Any:
        if slot.h is not None:
            return slot.h
        # The sum of `stride` equal steps; those in coarse slots were summed by `coarsen`.
        return (self.h if self.h is not None else shared.h) * stride


# Cheap enough to be computed again in the pullback from what is kept: one pass over values that are at hand.
_CHEAP = frozenset(
    "abs add add_any and broadcast_in_dim ceil clamp complex concatenate conj convert_element_type copy dynamic_slice "
    "eq floor ge gt imag integer_pow is_finite le lt max min mul ne neg not one_minus_square or pad real reshape rev "
    "round select_n sign slice square squeeze sub transpose xor".split()
)


# States of so many bytes do not stay in the cache until the pullback: it is faster to compute them again.
_LARGE_STATE = 1 << 16


def keeping_little(f: Callable[..., Any], state: State) -> Callable[..., Any]:
    """The function, whose pullback keeps only its arguments and, of small states, what is costly to compute from them.

    A tanh layer, say, keeps its state and the tanh, from which the derivative is a subtraction, and no transposed
    weights: two thirds of the memory traffic.
    """
    size = size_in_bytes(state)
    # Layers are differentiated inside loops, where XLA cannot merge the second evaluation with the first.
    return jax.checkpoint(f, prevent_cse=False, policy=_worth_keeping if size < _LARGE_STATE else None)


def _worth_keeping(primitive: Any, *operands: Any, **_: Any) -> bool:
    # JAX cannot keep complex intermediate values; they are computed again.
    complex_ = primitive.name == "fft" or any(jnp.issubdtype(x.dtype, jnp.complexfloating) for x in operands)
    return primitive.name not in _CHEAP and not complex_
