"""How the keys of a config must fit together; what levels solvers have is asked in `experiments.config.hierarchies`."""

import re
from collections.abc import Callable, Iterator

from experiments.config import hierarchies
from experiments.config.nested import networks
from experiments.config.schema import Config
from experiments.config.solver import solver
from experiments.foundation.functions import is_reference


def problems(config: Config) -> list[str]:
    """What is wrong between the keys: one line each, with key, value, expectation and remedy."""
    lines = [*_nested(config), *hierarchies.coarse(config)]
    # The checks below divide the layers and build the solvers, which these say cannot be done.
    if lines:
        return lines
    broken = [(one.network.layers, line) for one in networks(config) for check in CHECKS for line in check(one)]
    deepest = config.network.layers
    return [line if layers == deepest else f"nested network of {layers} layers: {line}" for layers, line in broken]


def _precision(config: Config) -> Iterator[str]:
    """Numbers that become 0 or infinite in the training's precision: a rate of 1e-50 would train nothing."""
    least, most = 1.2e-38, 3.4e38  # of float32
    for section in ("network", "optimizer", "penalty") if config.dtype == "float32" else ():
        for key, value in getattr(config, section):
            if isinstance(value, float) and value and not least <= abs(value) <= most:
                yield (
                    f"{section}.{key} = {value!r}: expected a number from {least:g} to "
                    f"{most:g}, which dtype = 'float32' can hold. Give such a one, or dtype float64."
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
        # The library gives every device an interval at least, of the state's grid and of the adjoint's.
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
    # An address of IPv6 holds colons itself, and stands in brackets.
    host = r"(?:\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[\w.-]+)"
    address = re.fullmatch(host + ":([0-9]{1,5})", backend.coordinator or "", re.ASCII)
    if explicit and not (address and 0 < int(address[1]) < 2**16):
        yield (
            f"backend.coordinator = {backend.coordinator!r}: expected detect, mpi4py or HOST:PORT, such as node1:12345 "
            "or [fd00::1]:12345."
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
            f"Shorten the warm-up, --optimizer.warmup {config.iterations // 10} say, or train longer."
        )


def _characters(config: Config) -> Iterator[str]:
    network, text = config.network, config.problem.name == "text"
    if not is_reference(network.kind) and text != (network.kind == "transformer"):
        yield (
            f"network.kind = {network.kind!r}: expected {'transformer' if text else 'another'} with problem.name = "
            f"{config.problem.name!r}. Characters are for a transformer, and a transformer is for characters."
        )
    if network.kind == "transformer" and network.width % network.heads:
        yield (
            f"network.heads = {network.heads}: expected a divisor of network.width = {network.width}. Use fewer heads "
            "or another width."
        )


def _targets(config: Config) -> Iterator[str]:
    targets, loss = getattr(config.problem, "targets", None), config.training.loss
    if loss == ("cross_entropy" if targets else "squared_error"):
        yield (
            f"training.loss = {loss!r}: expected another {'with' if targets else 'without'} problem.targets: "
            "cross_entropy tells classes apart, squared_error is for numbers. Leave it out."
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
    hierarchies.hierarchy,
    hierarchies.predict_then_sweep,
    hierarchies.moving_average,
    _precision,
    _layout,
    _characters,
    _targets,
    _devices,
    _processes,
    _published,
    _control,
    _warmup,
)
