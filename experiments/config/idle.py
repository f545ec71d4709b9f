"""Which keys of a config have no effect on its training."""

from experiments.config.hierarchies import grid_sizes
from experiments.config.schema import Config, Control, Nested
from experiments.config.solver import PICARD, Solver
from experiments.foundation.functions import is_reference

PUBLISHED = ("hessian", "memory", "initial_step", "ls_max", "c1", "gtol")  # keys of one optimizer.name
OPTAX = ("learning_rate", "schedule", "warmup", "anticipate")  # of the others


def idle(config: Config) -> dict[str, str]:
    """The keys that have no effect, each with the reason; a file may hold them, a command line should not."""
    nested = [f"nested.{key}" for key in Nested.model_fields if key != "networks"]
    alone = dict.fromkeys(nested if config.nested.networks == 1 else [], "nested.networks = 1")
    return _idle_solvers(config) | _idle_optimizer(config) | _idle_network(config) | _idle_control(config) | alone


def _idle_network(config: Config) -> dict[str, str]:
    """The keys that describe another kind of network."""
    kind, keys = config.network.kind, [] if config.network.kind == "transformer" else ["heads"]
    if kind in ("mlp", "transformer") or is_reference(kind):
        keys += ["bias", *(["opening", "activation"] if kind != "mlp" else [])]
    return {f"network.{key}": f"network.kind = {kind!r}" for key in keys}


def _idle_control(config: Config) -> dict[str, str]:
    if config.control.active or config.training.method == "sequential":
        return {}
    return dict.fromkeys(
        [f"control.{key}" for key in Control.model_fields if key != "active"], "control.active = false"
    )


def _idle_optimizer(config: Config) -> dict[str, str]:
    name, hessian = config.optimizer.name, config.optimizer.hessian
    keys = OPTAX if name == "published" else PUBLISHED
    idle = {f"optimizer.{key}": f"optimizer.name = {name!r}" for key in keys}
    if name == "published":
        idle["evaluation.gradient"] = "optimizer.name = 'published'"
    if name == "published" and hessian != "l-bfgs":
        idle["optimizer.memory"] = f"optimizer.hessian = {hessian!r}"
    return idle


def _idle_solvers(config: Config) -> dict[str, str]:
    every = [f"{section}.{key}" for section in ("solver", "adjoint") for key in Solver.model_fields]
    if config.training.method == "sequential":
        control = [f"control.{key}" for key in Control.model_fields]
        keys = [*every, *control, "training.schedule", "training.moving_average"]
        return dict.fromkeys(keys, "training.method = 'sequential'")
    idle = {
        f"{section}.{key}": f"{section}.coarse_step = {step!r}"
        for section in ("solver", "adjoint")
        for key in PICARD
        if (step := getattr(config, section).coarse_step) != "picard"
    }
    if config.training.schedule == "predict_then_sweep":
        reason = "training.schedule = 'predict_then_sweep' with two levels"
        idle |= {
            f"{section}.{key}": reason
            for section in ("solver", "adjoint")
            for key in ("cycle", "cycles", "cf_relaxations")
            if len(grid_sizes(config, section)) == 2
        }
    return idle
