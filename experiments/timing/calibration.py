"""What the cost model needs to know: the time of one Phi, one pullback and one message, measured by themselves.

Pullbacks are timed in the library's own sweep of intervals, whatever it keeps or computes again.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

import jaxmgrit as jm
from experiments.networks.architecture import Layers, State
from experiments.networks.smooth import Layout
from experiments.timing.contenders import Case, network
from experiments.timing.devices import Devices
from experiments.timing.ranks import agreed
from jaxmgrit.analysis.cost_model import Costs, Sizes
from jaxmgrit.solvers.mgrit.coarse import Picard
from jaxmgrit.system.fused_sweep import interval_gradient
from jaxmgrit.system.linearise import AdjointBlock, pull_state, record
from jaxmgrit.system.step import Equation, Shared, Slot, keeping_little

REPEATS = 7
HOPS = 64  # messages in the loop that measures one
LARGE = 1 << 16  # bytes at least of the message that tells what a byte costs
WORK = 20  # small layers between two of them, so that no device waits long for the other
# Operations that communicate, under their names in `Counts`; what comes back has the shape of what was given.
KINDS: dict[str, Callable[[Any, jax.Array], jax.Array]] = {
    "sends": lambda backend, y: backend.shift(y, y.shape[0], None),
    "gathers": lambda backend, y: backend.all_gather(y)[-y.shape[0] :],
    "sums": lambda backend, y: backend.all_sum(y) / backend.size,
}

PyTree = Any
Choice = Callable[[list[float]], float]


class Network(NamedTuple):
    """Layers to be measured: the step, parameters with leading axis N, a state, the step size."""

    step: Callable[..., Any]
    theta: Layers
    u0: Any
    h: float

    @property
    def sizes(self) -> Sizes:
        """Bytes of what is sent."""
        layer = sum(x.nbytes // x.shape[0] for x in jax.tree.leaves(self.theta))
        state = jax.tree.leaves(self.u0)
        return Sizes(sum(x.nbytes for x in state), layer, max(x.dtype.itemsize for x in state))


def calibrate(
    memory: Any, case: Case, layout: Layout, devices: Devices, solver: jm.MGRIT, length: int, batch: int
) -> Costs:
    """Task of a worker: measure Phi and its pullbacks at `batch` intervals of `length` layers at a time, and by itself.

    All devices compute at once, each its share, as in the program that is modelled.
    """
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    problem, params, (x, _) = network(case, layout)
    own = Network(problem.step, params.layers, x, problem.h)
    message, byte = messages(own.u0, devices) if devices.count > 1 else (0.0, 0.0)
    alone = three(own, 1, length, 1, devices)
    swept = three(own, devices.count, length, batch, devices)
    coarse = coarse_steps(own, solver, length, devices)
    return Costs(*swept, *alone, *coarse, message, byte, evaluations(solver))


def evaluations(solver: jm.MGRIT) -> float:
    """Of Phi in one coarse step, those of many layers at once counted once."""
    if isinstance(solver.coarse_step, Picard):
        return float(max(1, solver.coarse_step.sweeps))
    return 2.0 if solver.coarse_step is jm.midpoint else 1.0


def coarse_steps(network: Network, solver: jm.MGRIT, factor: int, devices: Devices) -> tuple[float, float]:
    """Seconds of one coarse step for `factor` layers, and of its pullback, one by one as on the coarsest level."""
    kept = solver.coarse_params is jm.all_layers
    theta = jax.tree.map(lambda t: t[::factor], network.theta)
    if kept:
        whole = jax.tree.leaves(network.theta)[0].shape[0] // factor
        theta = jax.tree.map(lambda t: t[: whole * factor].reshape(whole, factor, *t.shape[1:]), network.theta)
    count = jax.tree.leaves(theta)[0].shape[0]
    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)) + jnp.zeros((), x.dtype), network.u0)

    def step(t: Layers, u: State) -> Any:
        h = jnp.full((factor,), network.h, jax.tree.leaves(u)[0].dtype) if kept else network.h * factor
        return solver.coarse_step(network.step, t, u, h, factor)

    def forward(t: Layers, rhs: State, u: State) -> Any:
        def one(u: State, inputs: Any) -> tuple[Any, Any]:
            u = jax.tree.map(jnp.add, step(inputs[0], u), inputs[1])
            return u, u

        return jax.lax.scan(one, u, (t, rhs))

    def backward(t: Layers, rhs: State, lam: State) -> Any:
        def one(lam: State, inputs: Any) -> tuple[Any, Any]:
            slot, u, source = inputs
            lam = jax.tree.map(jnp.add, jax.vjp(lambda v: step(slot, v), u)[1](lam)[0], source)
            return lam, lam

        return jax.lax.scan(one, lam, (t, rhs, rhs), reverse=True)

    ahead, back = (_seconds(_everywhere(f, devices), theta, states, network.u0) / count for f in (forward, backward))
    return ahead, max(0.0, back - ahead)


def three(network: Network, parts: int, length: int, batch: int, devices: Devices) -> tuple[float, float, float]:
    """Seconds of one Phi, one pullback to the state, and one to state and parameters, `batch` intervals at a time.

    Args:
        network: the layers.
        parts: a device goes through the N/parts first layers.
        length: layers of an interval.
        batch: intervals at a time.
        devices: which all compute at once.
    """
    layers = jax.tree.leaves(network.theta)[0].shape[0]
    length = min(length, layers)
    count = max(1, layers // length // parts // batch) * batch  # intervals, in whole batches
    repeats = -(-count * length // layers)

    def cut(t: Layers) -> Any:
        return jnp.tile(t, (repeats, *[1] * (t.ndim - 1)))[: count * length].reshape(-1, batch, length, *t.shape[1:])

    theta = jax.tree.map(cut, network.theta)
    starts = jax.tree.map(lambda x: jnp.tile(x, (count // batch, batch, *[1] * x.ndim)), network.u0)

    equation, shared = Equation(network.step, h=network.h), Shared()

    def forward(t: Layers, u: State) -> Any:
        return jax.lax.scan(lambda u, t: (network.step(t, u, network.h), None), u, t)[0]

    def to_state(t: Layers, u: State) -> Any:
        tape = record(lambda slot, v: equation.vjp_state(slot, v, shared), _block(t, u), 0)
        return tape.end, jax.lax.scan(lambda lam, one: (pull_state(one, lam), None), u, tape.taped, reverse=True)[0]

    def to_all(t: Layers, u: State) -> Any:
        return interval_gradient(equation, shared, _block(t, u), 0, u, False)

    def measured(f: Callable[..., Any]) -> float:
        def sweep(t: Layers, u: State) -> Any:
            # As `by_intervals` does: one interval is not batched.
            one_by_one = jax.tree.map(lambda x: x[:, 0], (t, u)) if batch == 1 else (t, u)
            return jax.lax.map(lambda pair: (f if batch == 1 else jax.vmap(f))(*pair), one_by_one)

        return _seconds(_everywhere(sweep, devices), theta, starts) / (count * length)

    phi, state, both = (measured(f) for f in (forward, to_state, to_all))
    # The sweeps of pullbacks compute the states as well; noise must not make a time negative.
    return phi, max(0.0, state - phi), max(0.0, both - phi)


def _block(theta: Layers, start: Any) -> AdjointBlock:
    return AdjointBlock(Slot(theta), None, start, None, None)


def sequential(network: Network, segment: int) -> float:
    """Seconds of the gradient of all layers, one after the other: the faster of two rematerialised scans."""
    layers = jax.tree.leaves(network.theta)[0].shape[0]

    def layer(u: State, t: Layers) -> tuple[Any, None]:
        return network.step(t, u, network.h), None

    kept = keeping_little(layer, network.u0)

    def objective(theta: Layers, u: State, length: int) -> Any:
        whole = layers // length * length

        def run(u: State, t: Layers) -> tuple[Any, None]:
            return jax.lax.scan(kept, u, t)[0], None

        segments = jax.tree.map(lambda t: t[:whole].reshape(-1, length, *t.shape[1:]), theta)
        u = jax.lax.scan(jax.checkpoint(run) if length < layers else run, u, segments)[0]
        u = run(u, jax.tree.map(lambda t: t[whole:], theta))[0] if whole < layers else u
        return sum(jnp.sum(x * x) for x in jax.tree.leaves(u))

    lengths = {layers, min(segment, layers)}
    programs = [jax.jit(jax.grad(partial(objective, length=length))) for length in lengths]
    return min(_seconds(f, network.theta, network.u0) for f in programs)


def messages(state: State, devices: Devices, of: Choice = statistics.median) -> tuple[float, float]:
    """Seconds per block sent to a neighbour, and per byte of it; `of` several times."""
    x = jax.tree.leaves(state)[0]
    # Of few bytes nothing could be told from the noise of two times.
    copies = max(4, -(-LARGE // x.nbytes))
    small, large = jnp.zeros((8,), x.dtype), jnp.broadcast_to(x, (copies, *x.shape)) + jnp.zeros((), x.dtype)
    message, longer = (message_seconds("sends", y, devices, of=of) for y in (small, large))
    return message, max(0.0, longer - message) / large.nbytes


def message_seconds(
    kind: str, array: jax.Array, devices: Devices, hops: int = HOPS, of: Choice = statistics.median
) -> float:
    """Seconds of an operation that communicates: what a loop of some work takes longer with one in every pass.

    Args:
        kind: one of `KINDS`.
        array: what every device sends.
        devices: between which.
        hops: messages in the loop.
        of: which of several times to take.
    """
    backend = devices.backend

    def loop(send: bool) -> Callable[..., Any]:
        def one(_: Any, carry: PyTree) -> PyTree:
            y, work = carry
            work = jax.lax.fori_loop(0, WORK, lambda _, w: jnp.tanh(w @ w), work)
            # The next work depends on what has come, so that neither can be done beside the other.
            return (KINDS[kind](backend, y) if send else y), work + 1e-9 * y.ravel()[0]

        return _everywhere(lambda y, work: jax.lax.fori_loop(0, hops, one, (y, work)), devices)

    sent, alone = _in_turns([loop(True), loop(False)], array, jnp.zeros((32, 32), array.dtype), of=of)
    return max(0.0, sent - alone) / hops


def _everywhere(f: Callable[..., Any], devices: Devices) -> Callable[..., Any]:
    """The function on every device at once, with the same arguments."""
    if devices.mpi or devices.count == 1:
        return jax.jit(f)
    none, each = PartitionSpec(), PartitionSpec("layers")

    def on_one(*args: Any) -> Any:
        return jax.tree.map(lambda y: y[None], f(*args))

    mesh = devices.mesh
    return jax.jit(jax.shard_map(on_one, mesh=mesh, in_specs=none, out_specs=each, check_vma=False))


def _seconds(f: Callable[..., Any], *args: Any) -> float:
    return _in_turns([f], *args)[0]


def _in_turns(programs: list[Callable[..., Any]], *args: Any, of: Choice = statistics.median) -> list[float]:
    """Seconds of each, called in turns so that they differ by what they do rather than by when they were measured."""

    def called(f: Callable[..., Any], times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            last = f(*args)
        jax.block_until_ready(last)
        return (time.perf_counter() - start) / times

    for f in programs:
        jax.block_until_ready(f(*args))
    # Ranks must call equally often, or one waits for messages that nobody sends.
    times = agreed(max(1, round(0.01 / called(programs[0], 1))))
    samples = [[called(f, times) for f in programs] for _ in range(REPEATS)]
    return [of(list(own)) for own in zip(*samples, strict=True)]
