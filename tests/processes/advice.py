"""What every rank of the test of advice runs: each asks for advice, and all must have got the same."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxmgrit as jm

jax.config.update("jax_platforms", "cpu")


def step(theta, u, h):
    """A layer of a residual network."""
    return u + h * jnp.tanh(u @ theta)


on = jm.MPI()
theta = jnp.asarray(np.random.default_rng(0).normal(size=(32, 4, 4)), jnp.float32)
# Both have seconds for a few candidates alone, so that whose clock ends the trials decides which there are.
advice = jm.advise(step, theta, jnp.ones((3, 4)), h=1 / 32, seconds=4, devices=(1, 2), backend=on)
everybody = on.comm.allgather((repr(advice.solver), repr(advice.adjoint), repr(advice.table), str(advice)))
assert all(one == everybody[0] for one in everybody), everybody
if on.comm.Get_rank() == 0:
    print(f"{len(everybody)} ranks agree on {len(advice.table)} rows")
