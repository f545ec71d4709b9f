"""Swinging up a pendulum: time steps as layers, torques as their parameters, one-shot.

    python -m examples.pendulum [--quick]

A layer is a Runge-Kutta step of the pendulum's equation with a torque of its own, that is constant over the step; the
running cost is the work of the torques, the loss the distance from standing upright at rest. Steps become shorter
towards the end. State, adjoint and torques converge together: two cycles for each update of the torques.
"""

import math

import jax
import jax.numpy as jnp
import optax

import jaxmgrit as jm
from examples.common import advised, arguments, timed

TIME, GRAVITY, FRICTION = 4.0, 9.81, 0.1  # s, 1/s^2 (over the length), 1/s
HANGING = jnp.array([[math.pi, 0.0]])  # angle from upright, and its rate


def rate(u, torque):
    """The pendulum's equation."""
    angle, speed = u[..., 0], u[..., 1]
    return jnp.stack([speed, GRAVITY * jnp.sin(angle) - FRICTION * speed + torque], axis=-1)


def step(torque, u, h):
    """The classical Runge-Kutta step of fourth order."""
    k1 = rate(u, torque)
    k2 = rate(u + h / 2 * k1, torque)
    k3 = rate(u + h / 2 * k2, torque)
    k4 = rate(u + h * k3, torque)
    return u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def step_sizes(steps):
    """One per layer, the last a third of the first."""
    h = jnp.linspace(1.5, 0.5, steps)
    return TIME * h / h.sum()


def make_problem(steps):
    """What is trained."""
    return jm.Problem(
        opening=lambda _, hanging: hanging,
        step=step,
        loss=lambda _, u, upright: (10 * jnp.sum((u - upright) ** 2), u[0]),
        h=step_sizes(steps),
        running_cost=lambda torque, u, h: 0.01 * h * jnp.sum(torque**2),
    )


def plain(params, batch, problem):
    """The same objective by `lax.scan`."""

    def f(u, x):
        torque, h = x
        return step(torque, u, h), problem.running_cost(torque, u, h)

    u, costs = jax.lax.scan(f, batch[0], (params.layers, problem.h))
    return problem.loss(None, u, batch[1])[0] + costs.sum()


def main(argv=None):
    """Find the torques; print where the pendulum ends, how fast residuals fall, and times."""
    options = arguments(__doc__, argv, steps=512, iterations=1500)
    steps, iterations = (128, 300) if options.quick else (options.steps, options.iterations)
    problem, batch = make_problem(steps), (HANGING, jnp.zeros((1, 2)))
    params = jm.Params({}, 0.1 * jnp.ones((steps, 1)), {})
    solver = jm.MGRIT(4, levels=2, cycles=2)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.2, iterations))
    trainer = jm.OneShot(problem, optimizer, solver=solver, adjoint=solver)
    state = trainer.init(params, batch)
    update = jax.jit(trainer.step, donate_argnums=0)
    for n in range(iterations):
        state, info = update(state, batch)
        if (n + 1) % (iterations // 4) == 0:
            print(f"{n + 1:5} objective {info.objective:8.4f}, residual {info.residual_norm:.1e}")

    params = trainer.params(state)
    _, (angle, speed) = problem.evaluate(params, batch)
    print(f"after {TIME} s: {math.degrees(angle):.2f} degrees from upright, {speed:.3f} rad/s")
    cold = jm.MGRIT(4, levels=2, cycles=3)
    norms = jax.jit(lambda torques: jm.solve(step, torques, HANGING, h=problem.h, solver=cold).residual_norms)
    norms = norms(params.layers)
    factors = [float(b / a) for a, b in zip(norms, norms[1:], strict=False)]
    print("residuals, from a cold start:", *(f"{x:.1e}" for x in norms))
    if not options.quick:
        objective = jax.value_and_grad(lambda params, batch: plain(params, batch, problem))
        state = trainer.init(params, batch)
        scan = {"scan": lambda state: objective(trainer.params(state), batch)}
        timed(scan | {"one-shot": lambda state: trainer.step(state, batch)}, state, repeats=50)
        advised(options.advise, "with the torques that were found", step, params.layers, HANGING, problem.h)
    return float(angle), float(speed), factors


if __name__ == "__main__":
    main()
