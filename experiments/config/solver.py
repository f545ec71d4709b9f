"""The `solver` and `adjoint` sections, and the library's objects that they and `training.schedule` name."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

import jaxmgrit as jm
from experiments.foundation.functions import Function, is_reference, own_function
from experiments.foundation.section import Count, Factor, NonNegative, Section

COARSE_PARAMS = {"injection": jm.injection, "average": jm.average, "all_layers": jm.all_layers}
COARSE_STEPS = {"same_step": jm.same_step, "midpoint": jm.midpoint, "zero_step": jm.zero_step}
PICARD = ("sweeps", "inner_values")  # keys of coarse_step = 'picard'
SCHEDULES: dict[str, jm.CyclesThenGradient | jm.PredictThenSweep] = {
    "cycles_then_gradient": jm.CyclesThenGradient(),
    "predict_then_sweep": jm.PredictThenSweep(),
}


class Solver(Section):
    """Multigrid over the layers."""

    coarsening_factor: Factor | Annotated[list[Factor], Field(min_length=1)] = Field(
        default=4, description="layers per coarse layer, one for all levels or one per level"
    )
    levels: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="at most this many levels; null: all there are"
    )
    min_coarse: int = Field(default=2, ge=1, description="fewest steps on the coarsest level")
    cf_relaxations: Annotated[list[Count], Field(min_length=2, max_length=2)] = Field(
        default=[0, 1], description="CF-relaxations on the finest level and on all levels below"
    )
    cycle: Literal["V", "F"] = Field(default="V", description="V- or F-cycles")
    cycles: int = Field(default=2, ge=1, le=1000, description="cycles per iteration, at most when a tolerance is given")
    rtol: NonNegative | None = Field(default=None, description="stop at this residual relative to the first")
    atol: NonNegative | None = Field(default=None, description="stop at this residual")
    skip_first_down: bool = Field(default=False, description="start the first cycle on the coarsest level")
    coarse_params: Literal["injection", "average", "all_layers"] | Function = Field(
        default="injection",
        description="parameters of one coarse layer; all_layers: for layers not smooth in depth; or a function's: "
        "(theta of m layers) -> theta",
    )
    coarse_step: Literal["same_step", "midpoint", "picard", "zero_step"] | Function = Field(
        default="same_step",
        description="what one coarse layer does with them; picard: of all_layers; zero_step: relaxation only; or a "
        "function's: (step, theta, u, h, m) -> u_next",
    )
    sweeps: Count = Field(default=2, description="of picard: over all the layers; as many as they are is sequential")
    inner_values: bool = Field(
        default=False, description="of picard: linearise adjoints at all states, kept, and evaluate no layer again"
    )
    exact_first: Count = Field(default=0, description="with all_layers: so many first intervals run exactly")
    intervals_per_sweep: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="intervals that go through one batched sweep; null: a good choice for the platform"
    )


def solver(section: Solver) -> jm.MGRIT:
    """The multigrid solver of a `solver` or `adjoint` section."""
    options = section.model_dump()
    # In the order of `jm.picard`'s arguments.
    sweeps = [options.pop(key) for key in PICARD]
    params, step = options.pop("coarse_params"), options.pop("coarse_step")
    factor = options.pop("coarsening_factor")
    return jm.MGRIT(
        coarsening_factor=tuple(factor) if isinstance(factor, list) else factor,
        cf_relaxations=tuple(options.pop("cf_relaxations")),
        coarse_params=_chosen(COARSE_PARAMS, params, "coarse_params"),
        coarse_step=jm.picard(*sweeps) if step == "picard" else _chosen(COARSE_STEPS, step, "coarse_step"),
        **options,
    )


def _chosen(known: Mapping[str, Callable[..., Any]], name: str, key: str) -> Callable[..., Any]:
    """The library's function of this name, or the user's own."""
    return own_function(name, f"solver.{key}", key) if is_reference(name) else known[name]
