"""What every process of a multi-process test runs: solves and one-shot training on a backend, results to a file.

python program.py OUT --backend local|mesh|mpi [--devices D] [--data P]
    [--until NAME] [--coordinator HOST:PORT --processes P --process I]
"""

import argparse
import dataclasses
import os

parser = argparse.ArgumentParser()
parser.add_argument("out")
parser.add_argument("--backend", choices=["local", "mesh", "mpi"], required=True)
parser.add_argument("--devices", type=int, default=1, help="local devices of this process")
parser.add_argument("--data", type=int, default=1, help="parts of the batch")
parser.add_argument(
    "--until", choices=["solve", "sgd predict"], help="the last result: a solve, or a training too, and a rough solve"
)
parser.add_argument("--coordinator")
parser.add_argument("--processes", type=int)
parser.add_argument("--process", type=int)
args = parser.parse_args()

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={args.devices}"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

import jaxmgrit as jm

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_platforms", "cpu")

LAYERS = 203
TWO_LEVELS = jm.MGRIT(4, levels=2)  # where levels are not the subject: programs grow with them


def backend():
    """The backend under test, and whether this process writes the results."""
    if args.backend == "local":
        return jm.Local(), True
    if args.backend == "mpi":
        ranks = jm.MPI(data=args.data)
        return ranks, ranks.comm.Get_rank() == 0
    if args.coordinator:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(args.coordinator, args.processes, args.process)
    shape = (args.data, len(jax.devices()) // args.data)
    mesh = jax.make_mesh(shape, ("data", "layers"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return jm.Mesh(mesh, data_axis="data"), jax.process_index() == 0


def whole(x):
    """A result as a NumPy array, also where other processes hold copies or parts of it; all must call it."""
    if isinstance(x, jax.Array) and not x.is_fully_replicated and not x.is_fully_addressable:
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x.addressable_data(0) if isinstance(x, jax.Array) and x.is_fully_replicated else x)


def step(theta, u, h):
    """A residual layer."""
    return u + h * jnp.tanh(u @ theta["w"] + theta["b"])


def running_cost(theta, u, h):
    """A cost along the layers that depends on all of its arguments: a mean over the samples, and one of its own."""
    return h * (0.1 * jnp.mean(jnp.sum(u**2, axis=1)) + jnp.sum(theta["w"] ** 2))


def sum_of_squares(x):
    """Of all entries."""
    return jnp.sum(x**2)


def penalty(params):
    """Tikhonov and smoothness in depth."""
    rough = params.layers["w"][1:] - params.layers["w"][:-1]
    return 1e-2 * sum(map(sum_of_squares, jax.tree.leaves(params))) + 1e-3 * sum_of_squares(rough)


def solves(theta, u0, layers, on):
    """Residual histories, states, adjoints and gradients of one solve each way."""
    h = np.linspace(1.0, 2.0, layers) * 0.03
    solver = jm.MGRIT(4, cf_relaxations=(1, 1), cycle="F", cycles=3)
    sol = jm.solve(step, theta, u0, h=h, solver=solver, backend=on)
    adj = jm.adjoint_solve(
        step, theta, sol, sol.u_final * 0.1, h=h, solver=solver, running_cost=running_cost, backend=on
    )
    gradients = jm.layer_gradients(step, theta, sol, adj, h=h, running_cost=running_cost, backend=on)

    def loss(theta, u0):
        return jnp.sum(jm.propagate(step, theta, u0, h=5.0 / layers, backend=on) ** 2)

    return {
        "residuals": (sol.residual_norms, adj.residual_norms),
        "states": (jm.trajectory(step, theta, sol, h=h, backend=on), sol.u_final, adj.lam_initial),
        "gradients": gradients,
        "propagate": jax.jit(jax.grad(loss, argnums=(0, 1)))(theta, u0),
    }


def scan(theta, u0, on):
    """Carry, outputs and all gradients of a scan with weights shared by the layers."""

    def scanned(theta, u0, weights):
        def f(u, x, h):
            u = u + h * jnp.tanh(u @ x["w"] + x["b"] + weights)
            return u, (jnp.sum(u * weights), jnp.sin(u[0]))

        solvers = {"solver": TWO_LEVELS, "adjoint": TWO_LEVELS}
        carry, ys = jm.scan(f, u0, theta, h=5.0 / LAYERS, reverse=True, backend=on, **solvers)
        return sum(map(sum_of_squares, (carry, *ys))), (carry, ys)

    derived = jax.value_and_grad(scanned, argnums=(0, 1, 2), has_aux=True)
    return jax.jit(derived)(theta, u0, jnp.linspace(0.5, 1.0, 4))


def rough(theta, u0, layers, on):
    """A solve whose coarse level keeps all layers, the first interval exact."""
    solver = jm.MGRIT(4, levels=2, coarse_params=jm.all_layers, coarse_step=jm.picard(2), cycles=2, exact_first=1)
    sol = jm.solve(step, theta, u0, h=5.0 / layers, solver=solver, backend=on)
    adj = jm.adjoint_solve(step, theta, sol, sol.u_final * 0.1, h=5.0 / layers, solver=solver, backend=on)
    return sol.residual_norms, sol.u_final, adj.residual_norms, adj.lam_initial


def newton(theta, u0, on):
    """Newton's state and adjoint, its iterations, and the gradients of the layers."""
    solver = jm.Newton(8)
    sol = jm.solve(step, theta, u0, h=5.0 / LAYERS, solver=solver, backend=on)
    cost = {"h": 5.0 / LAYERS, "running_cost": running_cost, "backend": on}
    adj = jm.adjoint_solve(step, theta, sol, sol.u_final * 0.1, solver=solver, **cost)
    assert sol.result == adj.result == jm.Result.CONVERGED
    return sol.cycles, adj.cycles, sol.u_final, adj.lam_initial, jm.layer_gradients(step, theta, sol, adj, **cost)


def trained(problem, params, batch, optimizer, on, **options):
    """20 one-shot iterations."""
    return history_of(jm.OneShot(problem, optimizer, backend=on, **options), params, batch)


def history_of(trainer, params, batch):
    """Losses, norms and final parameters of 20 iterations; nothing is traced twice."""
    state = trainer.init(params, batch)
    update = jax.jit(trainer.step, donate_argnums=0)
    history = []
    for _ in range(20):
        state, info = update(state, batch)
        history.append(info._replace(aux=None))
    assert update._cache_size() == 1, "traced more than once"
    if args.backend == "mpi":  # where every rank has its own
        ends = [np.asarray(x).tobytes() for x in jax.tree.leaves((state.params.opening, state.params.closing))]
        assert all(other == ends for other in on.comm.allgather(ends)), "opening or closing differ between ranks"
    stacked = jax.tree.map(lambda *rows: np.stack([whole(x) for x in rows]), *history)
    return stacked._asdict(), trainer.params(state)


def results(on):
    """Everything that must be the same on every backend: layers that divide no number of devices, then some that do."""
    rng = np.random.default_rng(0)
    theta = {"w": jnp.asarray(rng.normal(size=(LAYERS, 4, 4)) * 0.4), "b": jnp.asarray(rng.normal(size=(LAYERS, 4)))}
    params = jm.Params(jnp.asarray(rng.normal(size=(2, 4))), theta, jnp.asarray(rng.normal(size=(4, 1))))
    batch = (jnp.asarray(rng.normal(size=(6, 2))), jnp.asarray(rng.normal(size=(6, 1))))
    problem = jm.Problem(
        lambda p, x: jnp.tanh(x @ p), step, lambda p, u, y: (jnp.mean((u @ p - y) ** 2), None), h=5.0 / LAYERS
    )
    u0 = problem.opening(params.opening, batch[0])
    smooth = jm.MGRIT(4, levels=3, coarse_params=jm.average, coarse_step=jm.midpoint)
    kept = jm.MGRIT(4, levels=2, coarse_params=jm.all_layers, coarse_step=jm.picard(2), exact_first=1)
    predict = {"solver": smooth, "adjoint": smooth, "schedule": jm.PredictThenSweep()}
    values = {"solve": solves(theta, u0, LAYERS, on)}
    if args.until == "solve":
        return values
    values["sgd predict"] = trained(problem, params, batch, optax.sgd(1e-2), on, **predict)
    values["rough"] = rough(theta, u0, LAYERS, on)
    if args.until:
        return values
    even = jax.tree.map(lambda x: x[:64], theta)
    predict.update(solver=kept, adjoint=kept)
    cycles = {"solver": TWO_LEVELS, "adjoint": TWO_LEVELS}
    penalised = dataclasses.replace(problem, running_cost=running_cost, penalty=penalty)
    clipped = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-2))
    layerwise = jm.published_penalty(5.0 / LAYERS, gamma_tik=0.2, gamma_class=0.2, gamma_ddt=1e-5)
    published = dataclasses.replace(problem, penalty=layerwise)
    return {
        **values,
        "divided": rough(even, u0, 64, on),
        "scan": scan(theta, u0, on),
        "newton": newton(theta, u0, on),
        "sgd rough": trained(problem, params, batch, optax.sgd(1e-2), on, **predict),
        "adam": trained(penalised, params, batch, clipped, on, **cycles),
        "lbfgs published": history_of(jm.PublishedLoop(published, **cycles, backend=on), params, batch),
    }


on, writes = backend()
values = {
    name + jax.tree_util.keystr(path): whole(x)
    for name, tree in results(on).items()
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
}
if writes:
    np.savez(args.out, **values)
