"""What a program says about itself: names on its operations, which cost nothing and which the cost model reads.

Names survive `jit`, `vmap` and differentiation, and XLA's profiles show them.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from typing import NamedTuple

import jax

_LEVEL, _SWEEP, _TIMES = "jaxmgrit.level=", "jaxmgrit.sweep", "jaxmgrit.times="
_NUMBER = {name: re.compile(re.escape(name) + r"(\d+)") for name in (_LEVEL, _TIMES)}


def on_level(stride: int) -> AbstractContextManager[None]:
    """Messages in this block belong to the level whose steps replace `stride` layers; by default to the finest."""
    return jax.named_scope(f"{_LEVEL}{stride}")


def sweep() -> AbstractContextManager[None]:
    """Steps in this block are those of all intervals at once, whatever order the device takes them in."""
    return jax.named_scope(_SWEEP)


def at_most(times: int) -> AbstractContextManager[None]:
    """A `while_loop` in this block makes so many passes at most, by which the cost model counts it."""
    return jax.named_scope(f"{_TIMES}{times}")


class Scope(NamedTuple):
    """What the names around an operation say.

    Attributes:
        level: the stride of the level, 1 for the finest.
        swept: whether the operation is part of a sweep.
        times: passes of a `while_loop`, None where nothing is said.
    """

    level: int = 1
    swept: bool = False
    times: int | None = None

    def inside(self, names: str) -> Scope:
        """With the names of an operation added; the inner ones count."""
        if "jaxmgrit." not in names:
            return self
        levels, times = (_NUMBER[name].findall(names) for name in (_LEVEL, _TIMES))
        return Scope(
            int(levels[-1]) if levels else self.level,
            self.swept or _SWEEP in names,
            int(times[-1]) if times else self.times,
        )
