"""The levels of a hierarchy: how often, and by which factors, a network is coarsened."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from jaxmgrit.solvers.mgrit.coarse import all_layers
from jaxmgrit.system.partition import Level, cut

if TYPE_CHECKING:
    from jaxmgrit.solvers.mgrit.options import Options


def build_levels(
    steps: int, options: Options, devices: int = 1, *, front: bool = False, ragged: bool = False
) -> tuple[Level, ...]:
    """The grids for a network of `steps` layers on `devices` devices.

    Level l + 1 has floor(N_l / m_l) steps; with `ragged` it has ceil(N_l / m_l): the incomplete interval at the end
    gets a (shorter) coarse step of its own. Levels that keep all layers' parameters are never gathered.

    Raises:
        ValueError: more devices than intervals.
    """
    factors = _factors(steps, options, ragged)
    counts = [steps]
    for m in factors[:-1]:
        counts.append(-(-counts[-1] // m) if ragged else counts[-1] // m)
    gather = options.coarse_params is not all_layers
    return cut(counts, factors, devices, front=front, ragged=ragged, gather=gather)


def _factors(steps: int, options: Options, ragged: bool) -> list[int]:
    """Interval lengths of all levels. The last level is not coarsened: its one interval is all of it."""
    factors: list[int] = []
    n = steps
    while True:
        m = options.factor(len(factors))
        if m is None or (options.levels is not None and len(factors) + 1 >= options.levels):
            break
        coarse = -(-n // m) if ragged else n // m
        # With `ragged` one step stays one, ceil(1/m) = 1, without an end: hence the second condition.
        if coarse < max(1, options.min_coarse) or coarse == n:
            break
        factors.append(m)
        n = coarse
    # One level alone is sequential propagation, in segments as Sequential has them.
    return [*factors, n] if factors else [math.isqrt(steps - 1) + 1]
