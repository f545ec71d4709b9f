"""From a config to the objects of jaxmgrit and optax it names."""

import dataclasses
import os
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType

import jaxmgrit as jm
from experiments.config.ladder import climbs_by_sweeps, ladder, sweeps_and_cycles
from experiments.config.schema import Backend, Config
from experiments.config.solver import SCHEDULES, solver
from experiments.errors import ConfigError
from experiments.networks import kinds
from experiments.networks.architecture import Inputs
from experiments.networks.residual import penalty
from experiments.problems import Data
from experiments.problems.file import File, Own
from experiments.training.batches import Batches
from jaxmgrit.solvers.mgrit.coarse import Picard
from jaxmgrit.training.trainer import Trainer


def prepare_jax(config: Config) -> None:
    """Set what JAX must know before it first computes: the precision, and how many devices a CPU shall be."""
    jax.config.update("jax_enable_x64", config.dtype == "float64")
    devices = config.backend.devices or 1
    # Whoever has set XLA's own flag has decided already.
    if devices > 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        try:
            jax.config.update("jax_num_cpu_devices", devices)
        except RuntimeError:  # JAX has computed already, with the devices it has: `backend` counts them
            pass


def check_devices() -> None:
    """Raise a ConfigError where JAX has no device: its variables may name a platform that is not there."""
    try:
        jax.devices()
    except RuntimeError as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise ConfigError(
            f"JAX_PLATFORMS = {platforms!r}: expected platforms that this machine and this jax have, such as cpu or "
            f"cuda: {str(error).splitlines()[0][:200]}. Correct or unset it."
        ) from None


def backend(section: Backend) -> Any:
    """The backend of a config.

    Raises:
        ConfigError: More devices are asked for than there are, or MPI does not work here; the message says why.
    """
    if section.kind == "local":
        return jm.Local()
    if section.kind == "mpi":
        try:
            return jm.MPI(data=section.data)
        except (ImportError, RuntimeError) as error:
            raise ConfigError(f"backend.kind = 'mpi': {error}") from None
        except ValueError as error:
            raise ConfigError(f"backend.data = {section.data}: {error}") from None
    devices, processes = jax.devices(), jax.process_count()
    own = len(devices) // processes
    wanted = section.devices or own
    if wanted > own or (processes > 1 and wanted < own):
        raise ConfigError(
            f"backend.devices = {wanted}: expected {'at most ' if processes == 1 else ''}{own}, the "
            f"{devices[0].platform} devices JAX sees{' in each process' if processes > 1 else ''}. "
            "Leave it out, or on a CPU unset XLA_FLAGS so that as many as asked for are made."
        )
    wanted *= processes
    if wanted % section.data:
        raise ConfigError(
            f"backend.data = {section.data}: expected a divisor of {wanted}, the number of devices in all, as every "
            "part of the batch needs as many devices for the layers. Change it, or backend.devices."
        )
    # The layers along the last axis: neighbours among them, which talk most, are neighbours among the devices.
    shape, auto = (section.data, wanted // section.data), AxisType.Auto
    mesh = jax.make_mesh(shape, ("data", "layers"), axis_types=(auto, auto), devices=devices[:wanted])
    return jm.Mesh(mesh, axis="layers", data_axis="data")


def learning_rate(config: Config, factor: float = 1.0) -> optax.Schedule:
    """The learning rate over the iterations of a network, times `factor`."""
    section, iterations = config.optimizer, config.iterations
    peak, warmup = factor * section.learning_rate, section.warmup
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / (warmup + 1), peak, warmup),  # from above zero, or the first iteration is idle
            optax.cosine_decay_schedule(peak, iterations - warmup)
            if section.schedule == "cosine"
            else optax.constant_schedule(peak),
        ],
        [warmup],
    )


def optimizer(config: Config, rate: float = 1.0) -> optax.GradientTransformation:
    """The optax optimiser with its learning rate times `rate`, behind what is done to the gradient."""
    section = config.optimizer
    chain = [jm.anticipate(section.anticipate)] if section.anticipate > 0 else []
    if config.training.mesh_independent:
        chain.append(jm.l2_gradient(step_size(config)))
    update = {"adam": optax.adam, "sgd": optax.sgd}[section.name](learning_rate(config, rate))
    return optax.chain(*chain, update) if chain else update


def step_size(config: Config) -> float:
    """The layers' step size, T/N."""
    return config.network.final_time / config.network.layers


def problem(config: Config) -> jm.Problem:
    """The network's training problem."""
    h, network = step_size(config), kinds.architecture(config.network)
    head = kinds.Regression if targets(config) else kinds.Classification
    return jm.Problem(
        network.opening,
        network.step,
        head(network.outputs, kinds.loss_function(config.training.loss)),
        h=h,
        penalty=penalty(config.penalty, h, config.training.mesh_independent),
    )


def targets(config: Config) -> list[str] | None:
    """The numbers that a network predicts, by name; None where it tells classes apart."""
    return config.problem.targets if isinstance(config.problem, File | Own) else None


def initial_params(config: Config, data: Data) -> jm.Params:
    """The seeded initial parameters for these data."""
    x = data.train.x
    inputs = Inputs(x.shape[1:], x.dtype.kind in "iu", data.classes)
    return kinds.initial_params(config.network, inputs, config.seed, config.dtype)


def trainer(config: Config, rate: float = 1.0, rung: int = 0) -> Trainer:
    """The trainer: one-shot, or its conventional counterpart with exact states and gradients.

    Args:
        config: Of the run.
        rate: Factor on the learning rate (of the published loop, on the first trial's step size).
        rung: Of the `ladder`.

    Raises:
        ConfigError: An option that the library refuses; its message says which and why.
    """
    try:
        schedule, state, adjoint = _solvers(config, rung)
        if config.optimizer.name == "published":
            return published_loop(config, rate, state, adjoint)
        return jm.OneShot(
            problem(config),
            optimizer(config, rate),
            solver=state,
            adjoint=adjoint,
            schedule=schedule,
            backend=backend(config.backend),
        )
    except (TypeError, ValueError) as error:
        # A ConfigError, which is a ValueError, passes with its message as it is.
        raise ConfigError(str(error)) from None


def published_loop(config: Config, rate: float, state: Any, adjoint: Any) -> jm.PublishedLoop:
    """The published loop with the options of the `optimizer` section."""
    section = config.optimizer
    hessian: Any = {
        "identity": jm.SteepestDescent(),
        "l-bfgs": jm.LBFGS(memory=section.memory),
        "bfgs": jm.BFGS(),
    }[section.hessian]
    return jm.PublishedLoop(
        problem(config),
        solver=state,
        adjoint=adjoint,
        hessian=hessian,
        initial_step=rate * section.initial_step,
        ls_max=section.ls_max,
        c1=section.c1,
        gtol=section.gtol,
        inner_product="l2" if config.training.mesh_independent else "euclidean",
        backend=backend(config.backend),
    )


def _solvers(config: Config, rung: int) -> tuple[Any, jm.MGRIT | jm.Sequential, jm.MGRIT | jm.Sequential]:
    """Schedule, solver and adjoint of a rung."""
    if config.training.method == "sequential":
        return jm.CyclesThenGradient(), jm.Sequential(), jm.Sequential()
    own, adjoint = solver(config.solver), solver(config.adjoint)
    schedule = SCHEDULES[config.training.schedule]
    if config.training.moving_average is not None:
        schedule = jm.PredictThenSweep(config.training.moving_average)
    if rung == 0:
        return schedule, own, adjoint
    cycles = ladder(config)[rung]
    if cycles is None:
        return jm.CyclesThenGradient(), jm.Sequential(own.factor(0)), jm.Sequential(own.factor(0))
    first, predicted = ladder(config)[0], config.training.schedule == "predict_then_sweep"
    assert first is not None
    more = cycles // first
    if climbs_by_sweeps(config):
        sweeps, more = sweeps_and_cycles(ladder(config), rung)
        own, adjoint = (_with_more_sweeps(given, sweeps + 1 - first) for given in (own, adjoint))
        if more == 1:
            return schedule, own, adjoint

    def longer(given: jm.MGRIT) -> jm.MGRIT:
        return replace(given, cycles=more * (1 if predicted else given.cycles))

    return jm.CyclesThenGradient(), longer(own), longer(adjoint)


def _with_more_sweeps(given: jm.MGRIT, by: int) -> jm.MGRIT:
    step = given.coarse_step
    return replace(given, coarse_step=replace(step, sweeps=step.sweeps + by)) if isinstance(step, Picard) else given


def initial_state(
    config: Config, data: Data, trainer: Trainer, batches: Batches, params: jm.Params | None = None, iteration: int = 0
) -> jm.TrainState:
    """The trainer's state before its first iteration.

    Args:
        config: Of the run.
        data: What is trained on.
        trainer: The config's.
        batches: The config's.
        params: To start from; None: the config's own initial values.
        iteration: How many iterations there were before.

    Raises:
        ConfigError: Options that the library refuses for this network; its message says which and why.
    """
    try:
        state = trainer.init(initial_params(config, data) if params is None else params, batches.first())
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None
    return dataclasses.replace(state, iteration=trainer.backend.replicate(jnp.asarray(iteration, jnp.int32)))
