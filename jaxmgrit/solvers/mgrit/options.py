"""The options of multigrid, checked when made."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import jax

from jaxmgrit._checks import integer, is_real
from jaxmgrit.solvers.mgrit.coarse import Picard, all_layers, injection, midpoint, same_step

if TYPE_CHECKING:
    from jaxmgrit._pytree import PyTree


@dataclass(frozen=True)
class Options:
    """The options of `MGRIT`, which documents them."""

    coarsening_factor: int | tuple[int, ...] = 4
    levels: int | None = None
    min_coarse: int = 2
    cf_relaxations: tuple[int, int] = (0, 1)
    cycle: Literal["V", "F"] = "V"
    cycles: int = 2
    rtol: float | None = None
    atol: float | None = None
    skip_first_down: bool = False
    coarse_params: Callable[[PyTree], PyTree] = injection
    coarse_step: Callable[..., PyTree] = same_step
    norm: Callable[[PyTree], jax.Array] | None = None
    intervals_per_sweep: int | None = None
    sequential_fallback: bool = False
    relaxation_weight: float = 1.0
    batch_axis: int | None = 0
    exact_first: int = 0

    def __post_init__(self) -> None:
        # Programs are remembered by their solver, so that a field must be hashable: no lists.
        for name in ("coarsening_factor", "cf_relaxations"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.coarsening_factor, tuple):
            if not self.coarsening_factor:
                raise ValueError("MGRIT: coarsening_factor=() is empty; give an integer >= 2 or one per level.")
            for m in self.coarsening_factor:
                integer("MGRIT", "coarsening_factor", m, 2)
        else:
            integer("MGRIT", "coarsening_factor", self.coarsening_factor, 2)
        if self.levels is not None:
            integer("MGRIT", "levels", self.levels, 1)
        integer("MGRIT", "min_coarse", self.min_coarse, 0)
        if not isinstance(self.cf_relaxations, tuple) or len(self.cf_relaxations) != 2:
            raise ValueError(
                f"MGRIT: cf_relaxations={self.cf_relaxations!r} is not a pair; "
                "give (finest level, all levels below), for instance (0, 1)."
            )
        for nu in self.cf_relaxations:
            integer("MGRIT", "cf_relaxations", nu, 0)
        if self.cycle not in ("V", "F"):
            raise ValueError(f"MGRIT: cycle={self.cycle!r} is unknown; choose 'V' or 'F'.")
        integer("MGRIT", "cycles", self.cycles, 1)
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not (is_real(value) and math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"MGRIT: {name}={value!r} is not a finite number >= 0; give one, or None for no tolerance."
                )
        for name in ("skip_first_down", "sequential_fallback"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"MGRIT: {name}={getattr(self, name)!r} is not True or False.")
        _check_weight(self)
        if self.batch_axis is not None and (
            isinstance(self.batch_axis, bool) or not isinstance(self.batch_axis, numbers.Integral)
        ):
            raise TypeError(
                f"MGRIT: batch_axis={self.batch_axis!r} is not an integer; give the samples' axis, or None."
            )
        if self.sequential_fallback and not self.has_tolerance:
            raise ValueError("MGRIT: sequential_fallback=True needs a tolerance to fail at; set rtol or atol.")
        for name in ("coarse_params", "coarse_step"):
            if not callable(getattr(self, name)):
                raise TypeError(f"MGRIT: {name}={getattr(self, name)!r} is not a function; {_FUNCTIONS[name]}")
        _check_layers(self)
        if self.norm is not None and not callable(self.norm):
            raise TypeError(f"MGRIT: norm={self.norm!r} is not a function state -> scalar; give one, or None.")
        if self.intervals_per_sweep is not None:
            integer("MGRIT", "intervals_per_sweep", self.intervals_per_sweep, 1)

    @property
    def has_tolerance(self) -> bool:
        """Whether the solve stops by a tolerance."""
        return self.rtol is not None or self.atol is not None

    def factor(self, level: int) -> int | None:
        """The coarsening factor of a level (0 is the finest), or None where the tuple of factors has ended."""
        if not isinstance(self.coarsening_factor, tuple):
            return self.coarsening_factor
        return self.coarsening_factor[level] if level < len(self.coarsening_factor) else None


def _check_weight(options: Options) -> None:
    """Refuse weights that are out of range, and those that no relaxation would use."""
    weight, (finest, below) = options.relaxation_weight, options.cf_relaxations
    if not is_real(weight) or not math.isfinite(weight) or weight <= 0:
        raise ValueError(f"MGRIT: relaxation_weight={weight!r} is not a finite number > 0; 1 is plain C-relaxation.")
    two_levels = options.levels is not None and options.levels <= 2
    # `below` is for levels above the coarsest, which is solved exactly: with two levels there is none.
    if weight != 1 and finest == 0 and (below == 0 or two_levels):
        raise ValueError(
            f"MGRIT: relaxation_weight={weight!r} weights C-relaxation, but cf_relaxations={options.cf_relaxations} "
            f"has none{' with two levels' if two_levels and below else ''}; leave the weight at 1, or relax: "
            "cf_relaxations=(1, 1)."
        )


def _check_layers(options: Options) -> None:
    """Refuse coarse steps that do not fit what is kept of the layers."""
    integer("MGRIT", "exact_first", options.exact_first, 0)
    step = options.coarse_step
    if options.coarse_params is all_layers:
        # Not `zero_step`: what never looks at the parameters works with any.
        if step in (same_step, midpoint):
            raise ValueError(
                f"MGRIT: coarse_step={step.__name__} takes the parameters of one layer, but coarse_params=all_layers "
                "keeps all m: give coarse_step=jm.picard(2), or coarse_params=jm.average."
            )
    elif isinstance(step, Picard):
        raise ValueError(
            f"MGRIT: coarse_step={step} runs over all the layers it replaces; give coarse_params=jm.all_layers too."
        )
    elif options.exact_first:
        raise ValueError(
            f"MGRIT: exact_first={options.exact_first} runs layers one after another on the coarse level, which has "
            "them only with coarse_params=jm.all_layers; give that (with coarse_step=jm.picard(2), say), or leave it "
            "at 0."
        )


_FUNCTIONS = {
    "coarse_params": "give jm.injection, jm.average, jm.all_layers or (parameters of m layers, leading axis m) -> "
    "parameters of one.",
    "coarse_step": "give jm.same_step, jm.midpoint, jm.zero_step, jm.picard(2) (with coarse_params=jm.all_layers) or "
    "(step, theta, u, h, m) -> u_next.",
}
