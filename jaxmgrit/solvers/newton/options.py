"""The options of Newton, checked when made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxmgrit._checks import integer, is_real

if TYPE_CHECKING:
    from jaxmgrit.solvers.newton.samples import Jacobian


@dataclass(frozen=True)
class Options:
    """The options of `Newton`, which documents them."""

    coarsening_factor: int | None = None
    jacobian: Jacobian = "full"
    batch_axis: int | None = 0
    iterations: int = 20
    rtol: float | None = 0.0
    atol: float | None = None
    sequential_fallback: bool = True
    intervals_per_sweep: int | None = None

    def __post_init__(self) -> None:
        if self.coarsening_factor is not None:
            integer("Newton", "coarsening_factor", self.coarsening_factor, 1)
        if self.jacobian not in ("full", "channels"):
            raise ValueError(f"Newton: jacobian={self.jacobian!r} is unknown; choose 'full' or 'channels'.")
        if self.batch_axis is not None and (isinstance(self.batch_axis, bool) or not isinstance(self.batch_axis, int)):
            raise TypeError(
                f"Newton: batch_axis={self.batch_axis!r} is not an integer; name the samples' axis, or give None."
            )
        integer("Newton", "iterations", self.iterations, 1)
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not (is_real(value) and math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"Newton: {name}={value!r} is not a finite number >= 0; give one, or None for no tolerance."
                )
        if not isinstance(self.sequential_fallback, bool):
            raise TypeError(f"Newton: sequential_fallback={self.sequential_fallback!r} is not True or False.")
        if self.sequential_fallback and not self.has_tolerance:
            raise ValueError(
                "Newton: sequential_fallback=True needs a tolerance to fail at; set rtol or atol, or "
                "sequential_fallback=False for exactly so many iterations."
            )
        if self.intervals_per_sweep is not None:
            integer("Newton", "intervals_per_sweep", self.intervals_per_sweep, 1)

    @property
    def has_tolerance(self) -> bool:
        """Whether the solve stops by a tolerance."""
        return self.rtol is not None or self.atol is not None
