"""What each of two ranks runs: optimisers of every kind against optax alone, dropout, scans, layers with keys.

What fails is printed by its name; a rank that has done everything says so.
"""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
warnings.simplefilter("ignore")

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_platforms", "cpu")

import jax.numpy as jnp
import test_scan as scans
from helpers import common
from helpers import networks as nets
from helpers import optimizers as opts
from mpi4py import MPI

import jaxmgrit as jm

# Those whose iteration is one program, as users run it: by layer, gathered, and with trials along a line.
COMPILED = ["adam", "adafactor", "backtracking"]
# Also one that takes a third of a minute to compile: another line search is there.
LEFT_OUT = opts.ALIKE | {"lbfgs with its line search"}
SCANS = ["sequential", "multigrid", "relaxation", "newton"]


def optimizer(name, ranks):
    """Five updates, the third on each rank alone: from one number of ranks to another the state goes by a snapshot."""
    make, compiled = opts.OPTIMIZERS[name], name in COMPILED
    legs = (ranks, 2), (jm.MPI(MPI.COMM_SELF), 1), (ranks, 2)
    return opts.distance(opts.by_one_shot(make(), *legs, compiled=compiled), opts.plainly(make(), 5, compiled)), 1e-6


def in_common(_, ranks):
    """Shared parameters, a context and dropout."""
    expected = common.conventionally(common.PARAMS, common.CONTEXT, common.KEYS)
    trainer = common.one_shot(jm.MGRIT(2, cycles=6), ranks)
    trainer, state = common.trained(trainer, common.PARAMS, common.CONTEXT, common.KEYS)
    return nets.distance(trainer.params(state), expected), 1e-10


def scan(name, ranks):
    """Carries, outputs and all gradients of a scan."""
    expected = scans.value_and_gradients(jax.lax.scan, reverse=True)
    return nets.distance(
        scans.value_and_gradients(jm.scan, reverse=True, backend=ranks, **scans.WAYS[name]), expected
    ), 1e-12


def key_leaves(_, ranks):
    """Layers with keys and numbers among their leaves, sent with the others and not differentiated."""
    theta, u0 = nets.rough(10), nets.state()
    fixed = {"key": jax.random.split(jax.random.key(1), 10), "kind": jnp.arange(10)}
    solver = jm.MGRIT(2, levels=2, cycles=6, coarse_params=jm.average, coarse_step=jm.midpoint)

    def step(theta, u, h):
        return nets.tanh_step(theta, u, h) + 0.1 * h * nets.keyed(theta["key"]) * (theta["kind"] % 2).astype(u.dtype)

    def of(way):
        return jax.jit(jax.value_and_grad(lambda weights: jnp.sum(jnp.sin(way(step, {**weights, **fixed})))))(theta)

    actual = of(lambda f, theta: jm.propagate(f, theta, u0, h=0.1, solver=solver, adjoint=solver, backend=ranks))
    return nets.distance(actual, of(lambda f, theta: nets.scan(f, theta, u0, 0.1))), 1e-12


def main():
    ranks, failed = jm.MPI(), []
    cases = [(in_common, "in common"), (key_leaves, "key leaves")]
    cases += [(scan, name) for name in SCANS] + [(optimizer, name) for name in opts.OPTIMIZERS if name not in LEFT_OUT]
    for case, name in cases:
        try:
            distance, tolerance = case(name, ranks)
            reason = "" if distance < tolerance else f"off by {distance:.1e}"
        except Exception as error:  # the others are looked at all the same
            reason = f"{type(error).__name__}: {error}"
        if reason:
            failed.append(f"{case.__name__} {name!r}: {reason}")
    done = f"{len(cases)} cases, {sum(case is optimizer for case, _ in cases)} of them optimisers"
    # In one piece: ranks print side by side.
    print("\n".join([*failed, f"rank {ranks.comm.Get_rank()}: {done}, {len(failed)} failed\n"]), end="", flush=True)


main()
