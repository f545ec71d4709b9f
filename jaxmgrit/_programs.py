"""Compiled programs, found again by their static parts, so that calls outside `jit` compile once per step function."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar

T = TypeVar("T")

# Bounded: a step defined anew at every call is never asked for again, but is kept with all it closes over.
_KEPT = 128


def cached(build: Callable[..., T]) -> Callable[..., T]:
    """Remember the programs a function builds; build anew where an argument cannot be hashed."""
    remembered = lru_cache(maxsize=_KEPT)(build)

    @wraps(build)
    def find(*args: Any) -> T:
        # A step may be an object that cannot be hashed; then its program is built anew.
        try:
            hash(args)
        except TypeError:
            return build(*args)
        return remembered(*args)

    return find
