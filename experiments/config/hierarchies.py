"""What the library says of the solvers that a config asks for: their levels, and what a schedule can honour."""

from collections.abc import Iterator

import jaxmgrit as jm
from experiments.config.describe import words
from experiments.config.schema import Config
from experiments.config.solver import PICARD, SCHEDULES, Solver, solver
from experiments.foundation.functions import is_reference
from jaxmgrit.training.schedules.base import Setting

HIERARCHY = ("coarsening_factor", "levels", "min_coarse")  # keys of a solver that decide about its levels
COARSE = ("coarse_params", "coarse_step", *PICARD, "exact_first")  # what replaces layers on a coarse level


def grid_sizes(config: Config, section: str) -> list[int]:
    """Steps on each level of the `solver` or the `adjoint`, finest first, as the library builds them."""
    ragged = config.training.schedule == "predict_then_sweep"
    # Levels depend on no other key, and some of the others name functions that would be imported.
    plain = solver(_only(getattr(config, section), *HIERARCHY))
    return [level.steps for level in plain.hierarchy(config.network.layers, ragged=ragged)]


def hierarchy(config: Config) -> Iterator[str]:
    """What is wrong with the levels that a one-shot training asks for."""
    if config.training.method == "sequential":
        return
    layers = config.network.layers
    # Of an adjoint that is as the solver, which is the default, everything would be said twice.
    for name in ("solver", "adjoint") if config.adjoint != config.solver else ("solver",):
        section: Solver = getattr(config, name)
        factors, sizes = section.coarsening_factor, grid_sizes(config, name)
        if len(sizes) == 1:
            yield (
                f"{name}.coarsening_factor = {factors}: expected a factor that leaves at least {name}.min_coarse = "
                f"{section.min_coarse} intervals of network.layers = {layers}. Take a smaller factor or more layers, "
                "or training.method: sequential."
            )
        elif isinstance(factors, list) and len(sizes) != len(factors) + 1:
            yield (
                f"{name}.coarsening_factor = {factors}: expected {len(sizes) - 1} factor(s), as network.layers = "
                f"{layers}, {name}.min_coarse = {section.min_coarse} and {name}.levels = {section.levels} make the "
                f"levels {' > '.join(map(str, sizes))}. Drop the last factors, or change these keys."
            )


def predict_then_sweep(config: Config) -> Iterator[str]:
    """What predicting and sweeping has no use for."""
    if config.training.method == "sequential" or config.training.schedule != "predict_then_sweep":
        return
    instead = "or use training.schedule: cycles_then_gradient"
    plain = {name: _only(getattr(config, name), *HIERARCHY) for name in ("solver", "adjoint")}
    for name in ("solver", "adjoint") if config.adjoint != config.solver else ("solver",):
        section: Solver = getattr(config, name)
        for key in [key for key in Solver.model_fields if key not in (*HIERARCHY, *COARSE)]:
            # The library is asked key by key, rather than its rules repeated here; where it refuses the bare levels
            # already, the key is not to blame.
            if not _predicts(config, *[_only(section, *HIERARCHY, key)] * 2) and _predicts(config, *[plain[name]] * 2):
                default = words(Solver.model_fields[key].default)
                yield (
                    f"{name}.{key} = {getattr(section, key)}: expected {default}, the default, with training.schedule "
                    f"= 'predict_then_sweep', which has no use for it. Leave it out, {instead}."
                )
    if all(_predicts(config, one, one) for one in plain.values()) and not _predicts(config, *plain.values()):
        yield (
            f"adjoint.coarsening_factor = {config.adjoint.coarsening_factor}: expected the solver's, "
            f"{config.solver.coarsening_factor}, on the finest level with training.schedule = 'predict_then_sweep'. "
            f"Leave it out, {instead}."
        )


def _only(section: Solver, *keys: str) -> Solver:
    """A section with these keys alone; the others have their defaults."""
    return Solver(**{key: getattr(section, key) for key in keys})


def _predicts(config: Config, state: Solver, adjoint: Solver) -> bool:
    """Whether the library takes solvers for predicting and sweeping."""
    setting = Setting(solver(state), solver(adjoint), jm.Local())
    try:
        SCHEDULES["predict_then_sweep"].level(config.network.layers, setting)
    except ValueError:
        return False
    return True


def coarse(config: Config) -> Iterator[str]:
    """Coarse parameters and steps that do not fit each other; nothing else can be asked of such a solver."""
    for name in ("solver", "adjoint") if config.adjoint != config.solver else ("solver",):
        section: Solver = getattr(config, name)
        params, step = section.coarse_params, section.coarse_step
        if step == "picard" and params != "all_layers":
            yield (
                f"{name}.coarse_params = {params!r}: expected all_layers with {name}.coarse_step = 'picard', which "
                "runs over all the layers. Change one of them."
            )
        if params == "all_layers" and step not in ("picard", "zero_step") and not is_reference(step):
            yield (
                f"{name}.coarse_step = {step!r}: expected picard (or zero_step) with {name}.coarse_params = "
                "'all_layers'. Change one of them."
            )
        if params != "all_layers" and section.exact_first:
            yield (
                f"{name}.exact_first = {section.exact_first}: expected 0 with {name}.coarse_params = {params!r}, which "
                "keeps no layers to run. Leave it out, or use all_layers and picard."
            )


def moving_average(config: Config) -> Iterator[str]:
    """A moving average of coarse corrections where there is nothing to average."""
    training = config.training
    if training.moving_average is None or training.method == "sequential":
        return
    for key, value, expected in (
        ("training.schedule", training.schedule, "predict_then_sweep"),
        ("training.start", training.start, "cold"),
        ("network.layout", config.network.layout, "batch_first"),
    ):
        if value != expected:
            yield (
                f"training.moving_average = {training.moving_average}: expected null with {key} = {value!r}; it is for "
                f"{expected}. Leave it out, or change that."
            )
