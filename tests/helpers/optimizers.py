"""Optax transformations of every kind, and a small network that each of them trains, plainly and by `OneShot`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

import jaxmgrit as jm
from jaxmgrit.training.objective import Training

LAYERS, WIDTH, H = 10, 3, 0.2  # in intervals of 4: 12 slots on one device, 16 on two
FROZEN = jm.Params({"w": "none"}, {"w": "fast", "b": "none"}, {"w": "fast"})
RATES = jm.Params({"w": "slow"}, {"w": "fast", "b": "slow"}, {"w": "fast"})
CHOSEN = jax.tree.map(lambda label: label == "fast", FROZEN)


def _then_sgd(transformation):
    return optax.chain(transformation, optax.sgd(0.1))


# Each is made anew where it is used.
OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "nesterov": lambda: optax.sgd(optax.cosine_decay_schedule(0.1, 10), momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(1e-2),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "adamax": lambda: optax.adamax(1e-2),
    "amsgrad": lambda: optax.amsgrad(1e-2),
    "nadam": lambda: optax.nadam(1e-2),
    "radam": lambda: optax.radam(1e-2),
    "adabelief": lambda: optax.adabelief(1e-2),
    "adan": lambda: optax.adan(1e-2),
    "adagrad": lambda: optax.adagrad(1e-1),
    "adadelta": lambda: optax.adadelta(1.0),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=3),
    "adafactor, not factored": lambda: optax.adafactor(1e-2),
    "yogi": lambda: optax.yogi(1e-2),
    "lion": lambda: optax.lion(1e-2),
    "lamb": lambda: optax.lamb(1e-2),
    "lars": lambda: optax.lars(1e-1, weight_decay=0.01),
    "fromage": lambda: optax.fromage(1e-2),
    "novograd": lambda: optax.novograd(1e-2),
    "rmsprop": lambda: optax.rmsprop(1e-2, centered=True, momentum=0.9),
    "rprop": lambda: optax.rprop(1e-2),
    "sm3": lambda: optax.sm3(1e-1),
    "sign_sgd": lambda: optax.sign_sgd(1e-2),
    "optimistic": lambda: optax.optimistic_gradient_descent(1e-1),
    "polyak_sgd": lambda: optax.polyak_sgd(1e-1),
    "lbfgs with its line search": lambda: optax.lbfgs(memory_size=3),
    "lbfgs of as many pairs as slots": lambda: optax.chain(optax.scale_by_lbfgs(memory_size=12), optax.scale(-0.1)),
    "backtracking": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10)),
    "reduce_on_plateau": lambda: optax.chain(optax.adam(1e-2), contrib.reduce_on_plateau(patience=1, rtol=0.9)),
    "clip": lambda: _then_sgd(optax.clip(0.05)),
    "clip_by_global_norm": lambda: _then_sgd(optax.clip_by_global_norm(0.1)),
    "clip_by_block_rms": lambda: _then_sgd(optax.clip_by_block_rms(0.01)),
    "adaptive_grad_clip": lambda: _then_sgd(optax.adaptive_grad_clip(0.1)),
    "scale_by_param_block_rms": lambda: _then_sgd(optax.scale_by_param_block_rms()),
    "scale_by_param_block_norm": lambda: _then_sgd(optax.scale_by_param_block_norm()),
    "normalize_by_update_norm": lambda: _then_sgd(optax.normalize_by_update_norm()),
    "centralize": lambda: _then_sgd(optax.centralize()),
    "add_noise": lambda: _then_sgd(optax.add_noise(0.1, 0.5, key=3)),
    "anticipate": lambda: optax.chain(jm.anticipate(0.2), optax.adam(1e-2)),
    "frozen leaves": lambda: optax.multi_transform({"fast": optax.adam(1e-2), "none": optax.set_to_zero()}, FROZEN),
    "groups of rates": lambda: optax.multi_transform({"fast": optax.adam(1e-2), "slow": optax.sgd(1e-2)}, RATES),
    "masked": lambda: optax.masked(optax.adam(1e-2), CHOSEN),
    "masked by shape": lambda: _then_sgd(
        optax.masked(optax.add_decayed_weights(0.1), lambda params: jax.tree.map(lambda x: x.ndim > 2, params))
    ),
    "frozen layers": lambda: optax.chain(optax.adam(1e-2), optax.stateless(_first_half_only)),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(optax.linear_schedule(0.01, 0.1, 5)),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(1e-2), 3),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(1e-2), every_k_schedule=2),
    "flatten": lambda: optax.flatten(optax.adam(1e-2)),
    "ema": lambda: _then_sgd(optax.ema(0.9)),
    "muon": lambda: contrib.muon(1e-2),
    "schedule_free": lambda: contrib.schedule_free_adamw(1e-2),
    "prodigy": lambda: contrib.prodigy(1.0, estim_lr0=1e-3),
    "dog": lambda: contrib.dog(init_step=("learning_rate", 1e-2)),
    "cocob": lambda: contrib.cocob(),
    "ademamix": lambda: contrib.ademamix(1e-2),
    "momo": lambda: contrib.momo(1e-1),
    "dadapt": lambda: contrib.dadapt_adamw(1.0, estim_lr0=1e-3),
    "acprop": lambda: contrib.acprop(1e-2),
}
# Like others of them, entry by entry with no more than a learning rate in common: not tried on ranks of MPI as well.
ALIKE = {
    *["adamw", "adamax", "amsgrad", "nadam", "radam", "adabelief", "adan", "adagrad", "adadelta", "yogi", "lion"],
    *["rprop", "sign_sgd", "clip", "ema", "ademamix", "acprop"],
}


def _first_half_only(updates, params):
    """Freeze the last layers: what needs the layers' number in the network."""
    kept = jnp.arange(LAYERS) < LAYERS // 2
    mask = lambda x: x * kept.reshape(-1, *[1] * (x.ndim - 1))  # noqa: E731
    return updates._replace(layers=jax.tree.map(mask, updates.layers))


def _step(theta, u, h):
    return u + h * jnp.tanh(u @ theta["w"] + theta["b"][None])


PROBLEM = jm.Problem(
    opening=lambda theta, x: x @ theta["w"],
    step=_step,
    loss=lambda theta, u, y: (jnp.mean((u @ theta["w"] - y) ** 2), None),
    h=H,
    penalty=lambda params: 0.01 * optax.tree.norm(params, squared=True),
)


def network():
    """Parameters and a batch."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape))

    layers = {"w": 0.4 * normal(LAYERS, WIDTH, WIDTH), "b": 0.1 * normal(LAYERS, WIDTH)}
    return jm.Params({"w": normal(2, WIDTH)}, layers, {"w": normal(WIDTH, 1)}), (normal(6, 2), normal(6, 1))


def _objective(params):
    _, (x, y) = network()
    step = lambda u, theta: (_step(theta, u, H), None)  # noqa: E731
    u_final = jax.lax.scan(step, PROBLEM.opening(params.opening, x), params.layers)[0]
    return PROBLEM.loss(params.closing, u_final, y)[0] + PROBLEM.penalty(params)


_gradient = jax.jit(jax.value_and_grad(_objective))


def plainly(optimizer, steps, compiled=True):
    """The parameters after so many updates by optax alone."""
    if not isinstance(optimizer, optax.MultiSteps):
        optimizer = optax.with_extra_args_support(optimizer)

    def update(params, state):
        value, gradient = _gradient(params)
        updates, state = optimizer.update(gradient, state, params, value=value, grad=gradient, value_fn=_objective)
        return optax.apply_updates(params, updates), state

    params, _ = network()
    state, update = optimizer.init(params), jax.jit(update) if compiled else update
    for _ in range(steps):
        params, state = update(params, state)
    return params


class _Gradient(Training):
    """A training whose gradient is one program, whatever the optimiser."""

    evaluate = jax.jit(Training.evaluate, static_argnums=(0, 4))


class _OneShot(jm.OneShot):
    """A trainer whose iteration need not be compiled: all optimisers have the program of the gradient."""

    @property
    def training(self):
        own = super().training
        return _Gradient(own.problem, own.schedule, own.setting)


def by_one_shot(optimizer, *legs, compiled=True, trainers=None):
    """The parameters after some updates on each backend in turn, `legs` being pairs (backend, updates).

    From one to the next the state goes by export and restore. Nothing is traced twice on a backend. Not compiled, an
    update is one operation after another, which takes less time than compiling what runs for a few steps. `trainers`
    hands compiled trainers from one call to the next, for one optimiser.
    """
    params, batch = network()
    trainers, traced, snapshot = {} if trainers is None else trainers, [], None
    before = len(trainers)
    for backend, steps in legs:
        if backend not in trainers:
            kind = jm.OneShot if compiled else _OneShot
            trainer = kind(PROBLEM, optimizer, jm.Sequential(4), jm.Sequential(4), backend=backend)

            def step(state, batch, trainer=trainer):
                traced.append(trainer)
                return trainer.step(state, batch)

            trainers[backend] = trainer, trainer.init(params, batch), jax.jit(step) if compiled else step
        trainer, fresh, update = trainers[backend]
        state = fresh if snapshot is None else trainer.restore(fresh, snapshot)
        for _ in range(steps):
            state, _ = update(state, batch)
        snapshot = trainer.export(state)
    assert not compiled or len(traced) == len(trainers) - before, "traced more than once"
    return snapshot.params


def distance(a, b):
    """The largest relative distance of a leaf."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(np.asarray(x) - y)) / np.max(np.abs(y))) for x, y in pairs)
