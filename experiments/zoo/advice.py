"""What `jm.advise` says of a network, against all its candidates measured and against two devices."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

import jaxmgrit as jm
from experiments.networks.zoo import Specimen, make
from experiments.timing.calibration import messages
from experiments.timing.devices import Devices
from experiments.timing.workers import Worker
from jaxmgrit.analysis.candidates import Row
from jaxmgrit.analysis.subject import Subject, stopped
from jaxmgrit.analysis.trials import message_seconds

PyTree = Any
ROUNDS, QUICKEST = 15, 0.02  # turns, and seconds of calls in one of them
LONG = 3600.0  # time to measure all candidates in


class Judged(NamedTuple):
    """How one network's advice does.

    Attributes:
        network: its name.
        layers: N.
        seconds: that the advice took.
        chosen: what it recommends on one device.
        best: the fastest candidate within the tolerance, all measured.
        over_best: time of the one over that of the other.
        predicted_one: predicted over measured time of what is recommended on one device.
        chosen_two: what is predicted to be the fastest on two devices, the sequential program on one of them included.
        parallel: what is predicted to be the fastest there of the others.
        predicted_two: predicted over measured time of that, or of the sequential program where there is no other; None
            where nothing was measured on two devices. The prediction is for devices that do not slow each other down:
            what it says of their computing is multiplied by the crowding.
        crowding: time of a device's share on both devices of this machine at once over that on one core; 1 where it
            was not measured.
    """

    network: str
    layers: int
    seconds: float
    chosen: str
    best: str
    over_best: float
    predicted_one: float
    chosen_two: str
    parallel: str
    predicted_two: float | None
    crowding: float


def judge(key: str, seconds: float, two: Worker | None) -> Judged:
    """Ask for advice on a network of the zoo, then measure all candidates in turns.

    Args:
        key: of the network.
        seconds: that the advice may take.
        two: a worker with two devices, or None.
    """
    net = make(key)
    speed = {} if two is None else two.ask(messages_on, key)
    start = time.monotonic()
    advice = jm.advise(net.step, net.theta, net.u0, h=net.h, devices=(1, 2), seconds=seconds, **speed)
    took = time.monotonic() - start
    whole = jm.advise(net.step, net.theta, net.u0, h=net.h, devices=(1,), seconds=LONG)
    rows = {row.name: row for row in (*whole.table, *advice.table) if row.solver is not None}
    pick = next(row for row in advice.table if (row.solver, row.adjoint) == (advice.solver, advice.adjoint))
    limit = 2 * min(row.seconds[1] for row in rows.values())
    close = {name: row for name, row in rows.items() if row.seconds[1] <= limit or name == pick.name}
    times = in_turns([_call(*_program(net, row, jm.Local())) for row in close.values()])
    measured = dict(zip(close, times, strict=True))
    best = min(measured, key=lambda name: measured[name])
    usable = [row for row in advice.table if row.solver is not None and 2 in row.seconds]
    chosen_two = min(usable, key=lambda row: row.seconds[2])
    parallel = min(usable[1:], key=lambda row: row.seconds[2], default=None)
    predicted_one = pick.seconds[1] / measured[pick.name]
    on_two, crowding = None, 1.0
    if two is not None and parallel is None:
        # The sequential program stays on one device.
        on_two = usable[0].seconds[2] / measured[usable[0].name]
    elif two is not None and parallel is not None:
        assert parallel.solver is not None and parallel.adjoint is not None
        sent = message_seconds(net.theta, net.u0, net.layers, (parallel.solver, parallel.adjoint), 2, **speed)
        spread, both = two.ask(on_devices, key, parallel)
        (alone,) = in_turns([_call(*_program(_first_half(net), parallel, jm.Local()))])
        crowding = both / alone
        on_two = (crowding * (parallel.seconds[2] - sent) + sent) / spread
    return Judged(
        net.name,
        net.layers,
        took,
        pick.name,
        best,
        measured[pick.name] / measured[best],
        predicted_one,
        chosen_two.name,
        "-" if parallel is None else parallel.name,
        on_two,
        crowding,
    )


def messages_on(memory: Any, key: str) -> dict[str, float]:
    """Task of a worker with two devices: the speed of messages of a network's states, as `jm.advise` takes it."""
    latency, byte = messages(make(key).u0, Devices(2), of=min)
    # Both are differences of measured times, and may still come out as zero.
    return {"latency": max(latency, 1e-7), "bandwidth": 1 / max(byte, 1e-12)}


def on_devices(memory: Any, key: str, row: Row) -> tuple[float, float]:
    """Task of a worker with two devices: seconds of a network's gradient there, and of half the layers on both at once.

    The halves do not know of each other, so that they send no messages.
    """
    net, backend = make(key), Devices(2).backend
    assert isinstance(backend, jm.Mesh)
    none, each = PartitionSpec(), PartitionSpec("layers")
    alone, arguments = _program(_first_half(net), row, jm.Local())

    def both(*args: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x[None], alone(*args))

    together = jax.shard_map(both, mesh=backend.mesh, in_specs=none, out_specs=each, check_vma=False)
    whole, (theta, *others) = _program(net, row, backend)
    # Where a training has them: else every call would first bring them to the devices.
    placed = [jax.device_put(x, NamedSharding(backend.mesh, spec)) for x, spec in ((theta, each), (others, none))]
    halves = jax.device_put(arguments, NamedSharding(backend.mesh, none))
    spread, two = in_turns([_call(whole, (placed[0], *placed[1])), _call(together, halves)])
    return spread, two


def _first_half(net: Specimen) -> Specimen:
    return net._replace(theta=jax.tree.map(lambda x: x[: net.layers // 2], net.theta))


def in_turns(calls: Sequence[Callable[[], PyTree]]) -> list[float]:
    """Seconds of the quickest call of each, called in turns."""
    once = [min(stopped(call), stopped(call), stopped(call)) for call in calls]
    samples = [
        [min(stopped(call) for _ in range(1 + int(QUICKEST / t))) for call, t in zip(calls, once, strict=True)]
        for _ in range(ROUNDS)
    ]
    return [min(own) for own in zip(*samples, strict=True)]


def _program(net: Specimen, row: Row, backend: Any) -> tuple[Callable[..., PyTree], tuple[PyTree, ...]]:
    """The gradient of the mean square of the final state through `propagate`, and what it is called with."""
    subject = Subject(net.step, net.theta, net.u0, net.h, jnp.sum, net.layers, backend).opened()

    def loss(theta: PyTree, u0: PyTree, constants: PyTree) -> Any:
        step = subject.with_constants(constants)
        final = jm.propagate(step, theta, u0, h=net.h, solver=row.solver, adjoint=row.adjoint, backend=backend)
        return sum(jnp.mean(x**2) for x in jax.tree.leaves(final))

    return jax.grad(loss, argnums=(0, 1, 2)), (net.theta, net.u0, subject.constants)


def _call(f: Callable[..., PyTree], arguments: tuple[PyTree, ...]) -> Callable[[], PyTree]:
    program = jax.jit(f)
    return lambda: jax.block_until_ready(program(*arguments))


def judged(keys: Sequence[str], seconds: float, devices: int, cores: tuple[int, ...] | None = None) -> list[Judged]:
    """`judge` for several networks, printed as they come; on two devices too, of these cores, if `devices` is 2."""
    # Compiled for the advice, found again when all candidates are measured.
    folder = tempfile.mkdtemp()
    print(f"{'network':28} {'N':>5} {'s':>5}  {'recommended':38} {'/best':>5} {'predicted/measured on 1, 2':>34}")
    two = Worker(Devices(2, cores=cores)) if devices == 2 else None
    results = []
    for key in keys:
        jax.config.update("jax_compilation_cache_dir", folder)
        # By default only what took a second to compile is kept.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        row = judge(key, seconds, two)
        results.append(row)
        on_two = "-" if row.predicted_two is None else f"{row.predicted_two:.2f}"
        on_two += f" (crowding {row.crowding:.2f})"
        line = f"{row.network:28} {row.layers:5} {row.seconds:5.0f}  {row.chosen:38} {row.over_best:5.2f}"
        print(
            f"{line} {row.predicted_one:12.2f} {on_two:>21}  best: {row.best}; on two: {row.chosen_two}; "
            f"compared: {row.parallel}",
            flush=True,
        )
    if two is not None:
        two.close()
    good = [row for row in results if row.over_best <= 1.2]
    print(f"within 1.2 of the best: {len(good)} of {len(results)}")
    for name, ratios in (
        ("one device", [row.predicted_one for row in results]),
        ("two devices", [row.predicted_two for row in results if row.predicted_two is not None]),
    ):
        near = [x for x in ratios if 0.75 <= x <= 1.25]
        print(f"predicted within 25 % on {name}: {len(near)} of {len(ratios)}")
    return results
