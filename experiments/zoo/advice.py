"""What `jm.advise` says of a network, against all its candidates measured and against two devices."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

import jaxmgrit as jm
from experiments.networks.zoo import Specimen, make
from experiments.timing.calibration import messages
from experiments.timing.devices import Devices
from experiments.timing.workers import Worker
from jaxmgrit.analysis.candidates import Row
from jaxmgrit.analysis.subject import Subject, stopped

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
        parallel: what is predicted to be the fastest of the others on two devices.
        predicted_two: its predicted time, multiplied by the crowding, over its measured time there; None where there is
            none, or it was not measured.
        crowding: time of a device's share on two devices of this machine at once over that on one alone; 1 where it
            was not measured. `jm.advise` measures on one device and takes devices not to be in each other's way.
    """

    network: str
    layers: int
    seconds: float
    chosen: str
    best: str
    over_best: float
    predicted_one: float
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
    parallel = min(
        (row for row in advice.table[1:] if row.solver is not None and 2 in row.seconds),
        key=lambda row: row.seconds[2],
        default=None,
    )
    on_two, crowding = None, 1.0
    if parallel is not None and two is not None:
        spread, crowding = two.ask(on_devices, key, parallel.name, parallel.solver, parallel.adjoint)
        on_two = crowding * parallel.seconds[2] / spread
    return Judged(
        net.name,
        net.layers,
        took,
        pick.name,
        best,
        measured[pick.name] / measured[best],
        pick.seconds[1] / measured[pick.name],
        "-" if parallel is None else parallel.name,
        on_two,
        crowding,
    )


def messages_on(memory: Any, key: str) -> dict[str, float]:
    """Task of a worker with two devices: the speed of messages of a network's states, as `jm.advise` takes it."""
    latency, byte = messages(make(key).u0, Devices(2))
    # Both are differences of measured times, and may come out as zero.
    return {"latency": max(latency, 1e-7), "bandwidth": 1 / max(byte, 1e-12)}


def on_devices(memory: Any, key: str, name: str, solver: Any, adjoint: Any) -> tuple[float, float]:
    """Task of a worker with two devices: seconds of the gradient of a network of the zoo there, and the crowding.

    That is the time of half the layers on both devices at once, without messages, over that on one device alone.
    """
    net, backend = make(key), Devices(2).backend
    half = net._replace(theta=jax.tree.map(lambda x: x[: net.layers // 2], net.theta))
    row, none, each = Row(name, solver, adjoint), PartitionSpec(), PartitionSpec("layers")
    alone, arguments = _program(half, row, jm.Local())

    def both(*args: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x[None], alone(*args))

    assert isinstance(backend, jm.Mesh)
    together = jax.shard_map(both, mesh=backend.mesh, in_specs=none, out_specs=each, check_vma=False)
    calls = [_call(f, arguments) for f in (alone, together)]
    spread, one, two = in_turns([_call(*_program(net, row, backend)), *calls])
    return spread, two / one


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


def judged(keys: Sequence[str], seconds: float, devices: int) -> list[Judged]:
    """`judge` for several networks, printed as they come; on two devices too if `devices` is 2."""
    # Compiled for the advice, found again when all candidates are measured.
    folder = tempfile.mkdtemp()
    print(f"{'network':28} {'N':>5} {'s':>5}  {'recommended':38} {'/best':>5} {'predicted/measured on 1, 2':>34}")
    two = Worker(Devices(2)) if devices == 2 else None
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
        print(f"{line} {row.predicted_one:12.2f} {on_two:>21}  best: {row.best}; on two: {row.parallel}", flush=True)
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
