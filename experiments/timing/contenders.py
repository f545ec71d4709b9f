"""What the benchmark times: one training step of a residual network, by every method, as functions of the same kind.

A program makes one step from a state to the next: a gradient, and a momentum-SGD update with rate 0, whose momentum
then is the gradient. The network is N layers `u + h tanh(u W + b)`, smooth in depth or independent of each other; the
loss is the mean square.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import jaxmgrit as jm
from experiments.networks.smooth import Layout, independent_layers, smooth_layers, tanh_step
from experiments.timing.devices import Devices
from jaxmgrit.analysis.cost_model import Counts, Sizes, iteration_counts

Kind = Literal["sequential", "data parallel", "gradient", "one-shot"]
FINAL_TIME = 5.0
SCALE = 0.5  # of the layers: those of a trained network of this depth are not larger
ROUGH = 0.85  # of independent layers, likewise: normal entries of standard deviation 0.3 at width 8


@dataclass(frozen=True)
class Case:
    """A network and a batch.

    Attributes:
        layers: N.
        width: features of a state.
        batch: points.
        dtype: of everything.
        factor: m of the one-shot iterations, and layers per segment of the sequential programs.
        independent: whether layers have nothing in common, rather than sample one smooth theta(t).
        sweeps: Picard sweeps of one-shot iterations that keep all layers.
        kept: m of these.
    """

    layers: int
    width: int
    batch: int
    dtype: str
    factor: int
    independent: bool = False
    sweeps: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()


class Program(NamedTuple):
    """One training step: `step(state, batch) -> (state, anything)`; the state may be donated.

    Attributes:
        step: the step.
        state: the first state.
        batch: its second argument.
        gradient: the gradient with respect to the layers, from the state after a step.
    """

    step: Callable[[Any, Any], tuple[Any, Any]]
    state: Any
    batch: Any
    gradient: Callable[[Any], Any]


@dataclass(frozen=True)
class Contender:
    """A program by name.

    Attributes:
        name: what it does.
        kind: what it is to be compared with.
        layout: which axis of a state comes first.
        build: makes the program; nothing is computed before.
        counts: what one step evaluates, of state and of adjoint; None where the model has nothing to say.
        solver: of state and adjoint, where they are solved by multigrid.
    """

    name: str
    kind: Kind
    layout: Layout
    build: Callable[[], Program]
    counts: tuple[tuple[Counts, ...], tuple[Counts, ...]] | None = None
    solver: jm.MGRIT | None = None


def network(case: Case, layout: Layout) -> tuple[jm.Problem, jm.Params, tuple[jax.Array, jax.Array]]:
    """The training problem, its parameters and the batch."""
    random = np.random.default_rng(0)
    make, scale = (independent_layers, ROUGH) if case.independent else (smooth_layers, SCALE)
    theta = make(case.layers, case.width, scale=scale, dtype=case.dtype)
    x = jnp.asarray(random.normal(size=(case.batch, case.width)), case.dtype)
    x = x if layout == "batch_first" else x.T

    def loss(closing: Any, u: jax.Array, y: jax.Array) -> tuple[jax.Array, None]:
        return jnp.mean((u - y) ** 2), None

    problem = jm.Problem(lambda p, x: x, tanh_step(layout), loss, h=FINAL_TIME / case.layers)
    return problem, jm.Params({}, theta, {}), (x, jnp.zeros_like(x))


def contenders(case: Case, layouts: tuple[Layout, ...], devices: Devices) -> Iterator[Contender]:
    """Everything that is timed on so many devices."""
    for layout in layouts:
        if devices.count == 1:
            yield from _sequential(case, layout)
        else:
            yield from _data_parallel(case, layout, devices)
        yield from _gradients(case, layout, devices)
        yield from _one_shot(case, layout, devices)


def _sequential(case: Case, layout: Layout) -> Iterator[Contender]:
    for name, options in _SCANS.items():
        # Bound as defaults: a lambda would see the loop's last options.
        yield Contender(f"scan{name}", "sequential", layout, lambda o=options: _scan(case, layout, Devices(), **o))  # type: ignore[misc]
    sequential = jm.Sequential(case.factor)

    def build() -> Program:
        return trained(case, layout, Devices(), sequential, jm.CyclesThenGradient())

    yield Contender("jm.Sequential", "sequential", layout, build)


def _data_parallel(case: Case, layout: Layout, devices: Devices) -> Iterator[Contender]:
    if case.batch % devices.count:
        return
    for name in (", layers rematerialised", ", segments", ", segments, layers rematerialised"):
        yield Contender(
            f"scan{name}, batch split",
            "data parallel",
            layout,
            lambda o=_SCANS[name]: _scan(case, layout, devices, **o),  # type: ignore[misc]
        )


def _gradients(case: Case, layout: Layout, devices: Devices) -> Iterator[Contender]:
    for cycles in (1, 2):
        for name, hierarchy in {
            "2 levels, m = 16": {"coarsening_factor": 16, "levels": 2},
            "3 levels, m = 16, 4": {"coarsening_factor": (16, 4), "levels": 3},
        }.items():
            solver = jm.MGRIT(cycles=cycles, coarse_params=jm.average, coarse_step=jm.midpoint, **hierarchy)  # type: ignore[arg-type]
            yield _multigrid(
                f"{cycles} + {cycles} cycles, {name}",
                case,
                layout,
                devices,
                solver,
                jm.CyclesThenGradient(),
                "gradient",
            )


def _one_shot(case: Case, layout: Layout, devices: Devices) -> Iterator[Contender]:
    for name, hierarchy in {
        f"2 levels, m = {case.factor}": {"coarsening_factor": case.factor, "levels": 2},
        "3 levels, m = 16, 4": {"coarsening_factor": (16, 4), "levels": 3, "cycles": 1},
    }.items():
        solver = jm.MGRIT(coarse_params=jm.average, coarse_step=jm.midpoint, **hierarchy)  # type: ignore[arg-type]
        yield _multigrid(
            f"predict, then sweep, {name}", case, layout, devices, solver, jm.PredictThenSweep(), "one-shot"
        )

    for factor, sweeps, inner in itertools.product(case.kept, case.sweeps, (False, True)):
        step = jm.picard(sweeps, inner_values=inner)
        solver = jm.MGRIT(factor, levels=2, coarse_params=jm.all_layers, coarse_step=step)
        name = f"predict, then sweep, picard({sweeps}), m = {factor}{', inner values' * inner}"
        yield _multigrid(name, case, layout, devices, solver, jm.PredictThenSweep(), "one-shot")


def _multigrid(
    name: str, case: Case, layout: Layout, devices: Devices, solver: jm.MGRIT, schedule: Any, kind: Kind
) -> Contender:
    item = 4 if case.dtype == "float32" else 8
    sizes = Sizes(case.batch * case.width * item, (case.width + 1) * case.width * item, item)
    counts = iteration_counts(schedule, case.layers, solver, solver, devices.count, sizes)
    return Contender(name, kind, layout, lambda: trained(case, layout, devices, solver, schedule), counts, solver)


_SCANS: dict[str, dict[str, Any]] = {
    f"{', segments' * segments}{', layers rematerialised' * layers}{f', unroll {unroll}' * (unroll > 1)}": {
        "segments": segments,
        "layers": layers,
        "unroll": unroll,
    }
    for segments in (False, True)
    for layers in (False, True)
    for unroll in (1, 2, 4)
}


def _optimizer() -> optax.GradientTransformation:
    return optax.sgd(0.0, momentum=0.0)


def _kept(optimizer_state: Any) -> Any:
    """The gradient that the optimiser's momentum is."""
    return optimizer_state[0].trace.layers


def trained(case: Case, layout: Layout, devices: Devices, solver: Any, schedule: Any) -> Program:
    """One step of jaxmgrit's training."""
    problem, params, batch = network(case, layout)
    backend = devices.backend
    trainer = jm.OneShot(problem, _optimizer(), solver, solver, schedule, backend)
    state = trainer.init(params, batch)

    def gradient(state: Any) -> Any:
        return jax.tree.map(lambda x: x[: case.layers], backend.gather(_kept(state.optimizer)))

    return Program(trainer.step, state, batch, gradient)


def _scan(case: Case, layout: Layout, devices: Devices, segments: bool, layers: bool, unroll: int) -> Program:
    """Reverse mode through a scan over the layers, rematerialised by segment, by layer or not; the batch split."""
    problem, params, (x, y) = network(case, layout)
    length = case.factor if segments and case.layers % case.factor == 0 else case.layers

    def one(u: jax.Array, theta: Any) -> tuple[jax.Array, None]:
        return problem.step(theta, u, problem.h), None

    layer = jax.checkpoint(one) if layers else one

    def several(u: jax.Array, theta: Any) -> tuple[jax.Array, None]:
        return jax.lax.scan(layer, u, theta, unroll=unroll)[0], None

    def objective(params: jm.Params, x: jax.Array, y: jax.Array) -> Any:
        if segments:
            theta = jax.tree.map(lambda t: t.reshape(-1, length, *t.shape[1:]), params.layers)
            u = jax.lax.scan(jax.checkpoint(several), x, theta)[0]
        else:
            u = several(x, params.layers)[0]
        # The loss is a mean over a device's points; their gradients are summed.
        return problem.loss(params.closing, u, y)[0] / devices.count

    gradient = jax.value_and_grad(objective)
    if devices.mpi:
        axis = 0 if layout == "batch_first" else 1
        backend = devices.backend
        x, y = backend.scatter((x, y), axis)

        def gradient(params: jm.Params, x: jax.Array, y: jax.Array) -> Any:
            return backend.all_sum(jax.value_and_grad(objective)(params, x, y))
    elif devices.count > 1:
        points = PartitionSpec("layers") if layout == "batch_first" else PartitionSpec(None, "layers")
        mesh = devices.mesh
        x, y = jax.device_put((x, y), NamedSharding(mesh, points))
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))

        def summed(params: jm.Params, x: jax.Array, y: jax.Array) -> Any:
            return jax.lax.psum(jax.value_and_grad(objective)(params, x, y), "layers")

        everywhere = PartitionSpec()
        gradient = jax.shard_map(
            summed, mesh=mesh, in_specs=(everywhere, points, points), out_specs=everywhere, check_vma=False
        )

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        params, kept = state
        value, gradients = gradient(params, *batch)
        updates, kept = _optimizer().update(gradients, kept, params)
        return (optax.apply_updates(params, updates), kept), value

    # Copies of its own, since the state is donated.
    state = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), (params, _optimizer().init(params)))
    return Program(step, state, (x, y), lambda s: _kept(s[1]))
