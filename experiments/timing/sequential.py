"""The ways to write a scan over layers whose gradient is to be fast: the honest baseline is the best of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax

PyTree = Any
Step = Callable[[PyTree, PyTree, Any], PyTree]
Propagation = Callable[[PyTree, PyTree], PyTree]


def propagations(step: Step, h: Any, layers: int) -> dict[str, Propagation]:
    """(theta, u0) -> u^N by every way worth trying, the user's own plain scan first.

    Args:
        step: Phi(theta, u, h) -> u_next.
        h: step size.
        layers: N.
    """

    def scan(body: Step, unroll: int = 1) -> Propagation:
        return lambda theta, u0: jax.lax.scan(lambda u, p: (body(p, u, h), None), u0, theta, unroll=unroll)[0]

    # Inside a scan XLA cannot merge what is computed again, so the barriers against it would only cost time.
    checkpointed = jax.checkpoint(step, prevent_cse=False, static_argnums=(2,))
    return {
        "plain": scan(step),
        "checkpointed": scan(checkpointed),
        "unrolled": scan(step, unroll=4),
        "segments": _segments(step, h, _divisor_near(layers, math.isqrt(layers))),
    }


def _segments(step: Step, h: Any, length: int) -> Propagation:
    def segment(u: PyTree, part: PyTree) -> tuple[PyTree, None]:
        return jax.lax.scan(lambda u, p: (step(p, u, h), None), u, part)[0], None

    def propagate(theta: PyTree, u0: PyTree) -> PyTree:
        parts = jax.tree.map(lambda x: x.reshape(-1, length, *x.shape[1:]), theta)
        return jax.lax.scan(jax.checkpoint(segment, prevent_cse=False), u0, parts)[0]

    return propagate


def _divisor_near(layers: int, length: int) -> int:
    return min((d for d in range(1, layers + 1) if layers % d == 0), key=lambda d: abs(d - length))
