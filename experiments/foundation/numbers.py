"""Numbers as files and command lines may hold them."""

import sys
from typing import TypeGuard


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value read from JSON or YAML is a number that a double can hold: neither infinite nor NaN.

    True and false are none, though Python takes them for 1 and 0; nor are integers beyond the largest double, which
    `math.isfinite` raises at.
    """
    # The comparison is false for NaN.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
