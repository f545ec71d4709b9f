"""How the keys of a config must fit together, and which of them have no effect on a given training."""

import re
from collections.abc import Callable, Iterator

import jaxmgrit as jm
from experiments.config.describe import words
from experiments.config.nested import networks
from experiments.config.schema import Config, Control, Nested
from experiments.config.solver import PICARD, SCHEDULES, Solver, solver
from jaxmgrit.training.schedules.base import Setting

HIERARCHY = ("coarsening_factor", "levels", "min_coarse")  # keys of a solver that decide about its levels
COARSE = ("coarse_params", "coarse_step", *PICARD, "exact_first")  # what replaces layers on a coarse level
PUBLISHED = ("hessian", "memory", "initial_step", "ls_max", "c1", "gtol")  # keys of one optimizer.name
OPTAX = ("learning_rate", "schedule", "warmup", "anticipate")  # of the others


def problems(config: Config) -> list[str]:
    """What is wrong between the keys: one line each, with key, value, expectation and remedy."""
    lines = [*_nested(config), *_coarse(config)]
    if lines:
        return lines
    found = [(one.network.layers, line) for one in networks(config) for check in CHECKS for line in check(one)]
    deepest = config.network.layers
    return [line if layers == deepest else f"nested network of {layers} layers: {line}" for layers, line in found]


def idle(config: Config) -> dict[str, str]:
    """The keys that have no effect, each with the reason; a file may hold them, a command line should not."""
    nested = [f"nested.{key}" for key in Nested.model_fields if key != "networks"]
    alone = dict.fromkeys(nested if config.nested.networks == 1 else [], "nested.networks = 1")
    return _idle_solvers(config) | _idle_optimizer(config) | _idle_control(config) | alone


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


def grid_sizes(config: Config, section: str) -> list[int]:
    """Steps on each level of the `solver` or the `adjoint`, finest first, as the library builds them."""
    ragged = config.training.schedule == "predict_then_sweep"
    plain = solver(_only(getattr(config, section), *HIERARCHY))
    return [level.steps for level in plain.hierarchy(config.network.layers, ragged=ragged)]


def _hierarchy(config: Config) -> Iterator[str]:
    if config.training.method == "sequential":
        return
    layers = config.network.layers
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


def _predict_then_sweep(config: Config) -> Iterator[str]:
    if config.training.method == "sequential" or config.training.schedule != "predict_then_sweep":
        return
    instead = "or use training.schedule: cycles_then_gradient"
    plain = {name: _only(getattr(config, name), *HIERARCHY) for name in ("solver", "adjoint")}
    for name in ("solver", "adjoint") if config.adjoint != config.solver else ("solver",):
        section: Solver = getattr(config, name)
        for key in [key for key in Solver.model_fields if key not in (*HIERARCHY, *COARSE)]:
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


def _coarse(config: Config) -> Iterator[str]:
    """Coarse parameters and steps that do not fit each other; nothing else can be asked of such a solver."""
    for name in ("solver", "adjoint") if config.adjoint != config.solver else ("solver",):
        section: Solver = getattr(config, name)
        params, step = section.coarse_params, section.coarse_step
        if step == "picard" and params != "all_layers":
            yield (
                f"{name}.coarse_params = {params!r}: expected all_layers with {name}.coarse_step = 'picard', which "
                "runs over all the layers. Change one of them."
            )
        if params == "all_layers" and step not in ("picard", "zero_step"):
            yield (
                f"{name}.coarse_step = {step!r}: expected picard (or zero_step) with {name}.coarse_params = "
                "'all_layers'. Change one of them."
            )
        if params != "all_layers" and section.exact_first:
            yield (
                f"{name}.exact_first = {section.exact_first}: expected 0 with {name}.coarse_params = {params!r}, which "
                "keeps no layers to run. Leave it out, or use all_layers and picard."
            )


def _moving_average(config: Config) -> Iterator[str]:
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


def _devices(config: Config) -> Iterator[str]:
    backend = config.backend
    if backend.kind == "mpi" and backend.devices is not None:
        yield (
            f"backend.devices = {backend.devices}: expected null with backend.kind = 'mpi': every rank is a device. "
            "Leave it out, and give mpirun the number of ranks."
        )
    if backend.kind == "local" and backend.data > 1:
        yield (
            f"backend.data = {backend.data}: expected 1 with backend.kind = 'local'. "
            "Use backend.kind: mesh, or leave backend.kind out."
        )
    if backend.kind == "local" and backend.devices not in (None, 1):
        yield (
            f"backend.devices = {backend.devices}: expected 1 with backend.kind = 'local'. "
            "Use backend.kind: mesh, or leave backend.kind out."
        )
    if config.training.method == "one_shot" and backend.devices is not None:
        grids = [solver(one).hierarchy(config.network.layers)[0] for one in (config.solver, config.adjoint)]
        most = min(grid.intervals for grid in grids) * backend.data
        if backend.devices * (backend.processes or 1) > most:
            yield (
                f"backend.devices = {backend.devices}: expected at most {most // (backend.processes or 1)}, the number "
                f"of intervals of network.layers = {config.network.layers} with this solver.coarsening_factor"
                + (f", times backend.data = {backend.data}" if backend.data > 1 else "")
                + (f", over backend.processes = {backend.processes}. " if backend.processes else ". ")
                + "Use fewer devices, more layers or a smaller factor."
            )


def _processes(config: Config) -> Iterator[str]:
    backend = config.backend
    explicit = backend.coordinator not in (None, "detect", "mpi4py")
    if backend.coordinator is not None and backend.kind != "mesh":
        yield (
            f"backend.coordinator = {backend.coordinator!r}: expected null with backend.kind = {backend.kind!r}. "
            "Use backend.kind: mesh, or leave it out."
        )
    if explicit and not re.fullmatch(r"[^\s]+:\d{1,5}", backend.coordinator or ""):
        yield (
            f"backend.coordinator = {backend.coordinator!r}: expected detect, mpi4py or HOST:PORT, such as node1:12345."
        )
    for key in ("processes", "process"):
        value = getattr(backend, key)
        if explicit and value is None:
            yield (
                f"backend.{key} = null: expected a number with backend.coordinator = {backend.coordinator!r}. Give "
                "every process the same coordinator and number of processes, and its own backend.process."
            )
        if not explicit and value is not None:
            yield (
                f"backend.{key} = {value}: expected null unless backend.coordinator is HOST:PORT. "
                "Leave it out, or give the coordinator."
            )
    if backend.processes is not None and backend.process is not None and backend.process >= backend.processes:
        yield (
            f"backend.process = {backend.process}: expected less than backend.processes = {backend.processes}; the "
            "first is 0."
        )


def _nested(config: Config) -> Iterator[str]:
    nested, layers = config.nested, config.network.layers
    ratio = nested.factor ** (nested.networks - 1)
    if layers % ratio:
        yield (
            f"nested.networks = {nested.networks}: expected network.layers = {layers} to be a multiple of {ratio}, "
            f"nested.factor = {nested.factor} to the power of {nested.networks - 1}. Use fewer networks, other layers."
        )
    if isinstance(nested.iterations, list) and len(nested.iterations) != nested.networks - 1:
        yield (
            f"nested.iterations = {nested.iterations}: expected {nested.networks - 1} numbers, one for each network "
            f"but the deepest, as nested.networks = {nested.networks}. Give one number for all, or as many."
        )


def _published(config: Config) -> Iterator[str]:
    if config.optimizer.name != "published":
        return
    training = config.training
    for key, value, allowed in (
        ("schedule", training.schedule, "cycles_then_gradient"),
        ("batch_size", training.batch_size, None),
        ("start", training.start, "warm"),
    ):
        sequential = key == "schedule" and training.method == "sequential"
        if value != allowed and not sequential:
            yield (
                f"training.{key} = {value!r}: expected {'null' if allowed is None else allowed} with optimizer.name = "
                "'published', which compares objectives of the same points. Leave it out, or use optimizer.name: adam."
            )
    if getattr(config.problem, "shift", 0):
        yield (
            f"problem.shift = {getattr(config.problem, 'shift', 0)}: expected 0 with optimizer.name = 'published', "
            "which compares objectives of the same points. Leave it out, or use optimizer.name: adam."
        )


def _control(config: Config) -> Iterator[str]:
    control = config.control
    if control.active and config.optimizer.name == "published":
        yield (
            "control.active = true: expected false with optimizer.name = 'published', whose line search controls its "
            "steps. Leave it out, or use another optimizer.name."
        )
    if control.longest < control.soon:
        yield f"control.longest = {control.longest}: expected at least control.soon = {control.soon}. Raise it."


def _warmup(config: Config) -> Iterator[str]:
    if config.optimizer.name != "published" and config.optimizer.warmup >= config.iterations:
        yield (
            f"optimizer.warmup = {config.optimizer.warmup}: expected fewer than iterations = {config.iterations}. "
            "Shorten the warm-up or train longer."
        )


def _layout(config: Config) -> Iterator[str]:
    if config.network.layout == "batch_first":
        return
    has = "network.layout = 'width_first': expected batch_first with"
    if config.network.kind != "dense":
        yield f"{has} network.kind = {config.network.kind!r}. Leave it out."
    if config.backend.data > 1:
        yield f"{has} backend.data = {config.backend.data}, which splits the leading axis. Leave one of them out."
    if config.training.batch_size is not None and config.training.start == "warm":
        yield f"{has} warm mini-batches, which take a state's samples from its leading axis. Use training.start: cold."


CHECKS: tuple[Callable[[Config], Iterator[str]], ...] = (
    _hierarchy,
    _predict_then_sweep,
    _moving_average,
    _layout,
    _devices,
    _processes,
    _published,
    _control,
    _warmup,
)
