"""What the cost model needs to know: the time of one Phi, one pullback and one message, measured in plain JAX loops."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from experiments.contenders import Case, Layout, mesh_of, network
from jaxmgrit.cost_model import Costs

REPEATS = 7
HOPS = 64  # messages in the loop that measures one


def calibrate(memory: Any, case: Case, layout: Layout, devices: int, length: int, batch: int) -> Costs:
    """Task of a worker: measure Phi and its pullbacks at `batch` intervals of `length` layers at a time, and by itself.

    All devices compute at once, each its share, as in the program that is modelled.
    """
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    problem, params, (x, _) = network(case, layout)
    share = max(batch, case.layers // length // devices // batch * batch)  # intervals of a device, in whole batches

    def cut(tree: Any, batch: int, count: int) -> Any:
        return jax.tree.map(lambda t: t[: count * length].reshape(-1, batch, length, *t.shape[1:]), tree)

    def sweep(f: Callable[..., Any], batch: int, count: int) -> float:
        """Seconds per layer of f(interval's parameters, state) over all intervals."""
        theta = cut(params.layers, batch, count)
        starts = jnp.broadcast_to(x, (count // batch, batch, *x.shape)) + jnp.zeros((), x.dtype)
        work = _everywhere(lambda t, u: jax.lax.map(lambda pair: jax.vmap(f)(*pair), (t, u)), devices)
        return _seconds(work, theta, starts) / (count * length)

    def forward(theta: Any, u: Any) -> Any:
        return jax.lax.scan(lambda u, t: (problem.step(t, u, problem.h), None), u, theta)[0]

    def kept(theta: Any, u: Any) -> Any:
        layer = jax.checkpoint(lambda u, t: (problem.step(t, u, problem.h), None), policy=_costly, prevent_cse=False)
        return jax.lax.scan(layer, u, theta)[0]

    def back_to_state(theta: Any, u: Any) -> Any:
        after, pullback = jax.vjp(lambda v: kept(theta, v), u)
        return after, pullback(u)

    def back_to_all(theta: Any, u: Any) -> Any:
        after, pullback = jax.vjp(kept, theta, u)
        return after, pullback(u)

    def three(batch: int, count: int) -> tuple[float, float, float]:
        phi, state, every = (sweep(f, batch, count) for f in (forward, back_to_state, back_to_all))
        return phi, max(0.0, state - phi), max(0.0, every - phi)

    swept = three(batch, share)
    alone = swept if batch == 1 else three(1, share)
    message, byte = _messages(x, devices) if devices > 1 else (0.0, 0.0)
    return Costs(*swept, *alone, message, byte, coarse=2.0)


def _costly(primitive: Any, *_: Any, **__: Any) -> bool:
    """What a rematerialised layer keeps: matrix products and transcendental functions."""
    return primitive.name in ("dot_general", "tanh")


def _everywhere(f: Callable[..., Any], devices: int) -> Callable[..., Any]:
    """The function on every device at once, with the same arguments."""
    if devices == 1:
        return jax.jit(f)
    none, each = PartitionSpec(), PartitionSpec("layers")

    def on_one(*args: Any) -> Any:
        return jax.tree.map(lambda y: y[None], f(*args))

    return jax.jit(jax.shard_map(on_one, mesh=mesh_of(devices), in_specs=none, out_specs=each, check_vma=False))


def _seconds(f: Callable[..., Any], *args: Any) -> float:
    jax.block_until_ready(f(*args))
    start = time.perf_counter()
    jax.block_until_ready(f(*args))
    once = time.perf_counter() - start
    times = max(1, round(0.01 / once))
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(times):
            last = f(*args)
        jax.block_until_ready(last)
        found.append((time.perf_counter() - start) / times)
    return statistics.median(found)


def _messages(x: jax.Array, devices: int) -> tuple[float, float]:
    """Seconds per message, and per byte of it."""
    pairs = [(i, (i + 1) % devices) for i in range(devices)]

    def send(y: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, HOPS, lambda _, z: jax.lax.ppermute(z, "layers", pairs), y)

    small, large = jnp.zeros((8,), x.dtype), jnp.broadcast_to(x, (4, *x.shape)) + jnp.zeros((), x.dtype)
    times = [_seconds(_everywhere(send, devices), y) / HOPS for y in (small, large)]
    return times[0], max(0.0, times[1] - times[0]) / large.nbytes
