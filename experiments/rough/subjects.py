"""Networks of independent layers whose contraction is tabulated, each with its data and how it is trained."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmgrit as jm
from experiments.errors import ConfigError
from experiments.networks.blocks import layer_norm, transformer_block, transformer_parameters
from experiments.problems.level_sets import CLASSES, LevelSets, load

PyTree = Any
Batch = tuple[jax.Array, jax.Array]
Pair = tuple[float, float]  # of the state and of the adjoint


class Subject(NamedTuple):
    """A network that is looked at.

    Attributes:
        step: Phi(theta, u, h) -> u_next.
        draw: (random numbers) -> parameters.
        opening: (parameters of the opening layer, x) -> u^0.
        loss: (parameters of the closing layer, u^N, y) -> scalar.
        batch: key -> (x, y), the same each time where all points are the batch.
        layers: N.
        h: step size.
        factor: m.
        cycles: of state and adjoint, whose reduction is told; from 1.
        rate: of Adam, the largest.
        iterations: of training.
        study: what a study measured on such a network, by "at init" or "trained" and coarse step.
    """

    step: Callable[[PyTree, jax.Array, Any], jax.Array]
    draw: Callable[[np.random.Generator], jm.Params]
    opening: Callable[[PyTree, jax.Array], jax.Array]
    loss: Callable[[PyTree, jax.Array, jax.Array], jax.Array]
    batch: Callable[[jax.Array], Batch]
    layers: int
    h: float
    factor: int
    cycles: tuple[int, int]
    rate: float
    iterations: int
    study: dict[str, dict[str, Pair]]


def _normal(random: np.random.Generator, *shape: int, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * random.normal(size=shape))


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def tanh_layers(layers: int | None, text: str | None) -> Subject:
    """Tanh layers of width 8, T = 5, on 300 points of the level sets of MATLAB's peaks."""
    study = {
        "at init": {
            "injection": (0.25, 0.33),
            "average": (0.033, 0.040),
            "picard(0)": (0.076, 0.12),
            "picard(1)": (0.034, 0.016),
        },
        "trained": {
            "injection": (0.21, 0.31),
            "average": (0.61, 1.2),
            "picard(0)": (0.72, 0.99),
            "picard(1)": (0.058, 0.18),
        },
    }
    return _tanh(layers or 256, 5.0, 8, study)


def eight_intervals(layers: int | None, text: str | None) -> Subject:
    """Tanh layers of width 8 in 8 intervals, with a final time at which 0.45 c2 of the law is about 0.48."""
    layers, nan = layers or 256, float("nan")
    rows = {"picard(0)": 0.39, "picard(1)": 0.15, "picard(2)": 0.026, "picard(3)": 0.0042}
    study = {"at init": {name: (state, nan) for name, state in rows.items()}}
    return _tanh(layers, 1.7 * layers**0.5, -(-layers // 8), study)


def _tanh(layers: int, final_time: float, factor: int, study: dict[str, dict[str, Pair]]) -> Subject:
    points = load(LevelSets(name="level_sets", train_per_class=60, validation_per_class=100), 0).train
    batch = jnp.asarray(points.x), jnp.asarray(points.y)

    def step(w: PyTree, u: jax.Array, h: Any) -> jax.Array:
        return u + h * jnp.tanh(u @ w)

    def draw(random: np.random.Generator) -> jm.Params:
        theta = _normal(random, layers, 8, 8, scale=0.3)
        return jm.Params(_normal(random, 2, 8), theta, _normal(random, 8, CLASSES, scale=8**-0.5))

    return Subject(
        step,
        draw,
        lambda w, x: jnp.tanh(x @ w),
        lambda w, u, y: _cross_entropy(u @ w, y),
        lambda key: batch,
        layers,
        final_time / layers,
        factor,
        (2, 2),
        1e-2,
        300,
        study,
    )


def mlp(layers: int | None, text: str | None) -> Subject:
    """Residual MLP layers with layer norm, width 64, on batches of 64 of scikit-learn's digits.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ConfigError("mlp: scikit-learn, which has the digits, is not installed; pip install scikit-learn.")
    from sklearn.datasets import load_digits

    layers = layers or 128
    x, y = load_digits(return_X_y=True)
    images, labels = jnp.asarray((x - x.mean()) / x.std()), jnp.asarray(y)

    def draw(random: np.random.Generator) -> jm.Params:
        theta = {name: _normal(random, layers, 64, 64, scale=0.125) for name in ("up", "down")}
        return jm.Params(_normal(random, 64, 64, scale=0.125), theta, _normal(random, 64, 10, scale=0.125))

    def step(p: PyTree, u: jax.Array, h: Any) -> jax.Array:
        return u + h * (jax.nn.gelu(layer_norm(u) @ p["up"]) @ p["down"])

    def batch(key: jax.Array) -> Batch:
        chosen = jax.random.choice(key, len(labels), (64,), replace=False)
        return images[chosen], labels[chosen]

    study = {
        "at init": {
            "injection": (1.2, 2.5),
            "average": (0.31, 0.47),
            "picard(0)": (0.32, 0.48),
            "picard(1)": (0.050, 0.073),
        }
    }
    return Subject(
        step,
        draw,
        lambda w, x: x @ w,
        lambda w, u, y: _cross_entropy(layer_norm(u) @ w, y),
        batch,
        layers,
        layers**-0.5,
        8,
        (1, 1),
        3e-3,
        300,
        study,
    )


def transformer(layers: int | None, text: str | None) -> Subject:
    """Pre-norm transformer layers, d = 16, 2 heads, on batches of 16 windows of 16 characters.

    The embeddings are standard normal: relative to them the layers' increments are as small, and the contraction as
    good, as the embeddings are large.

    Raises:
        ConfigError: the text cannot be read, or is too short.
    """
    layers, width, length = layers or 32, 16, 16
    sources = [Path(text)] if text else sorted(Path(jm.__file__).parent.rglob("*.py"))
    try:
        written = "".join(path.read_text(encoding="utf-8") for path in sources)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text {text}: {error}") from None
    letters, numbered = np.unique(np.frombuffer(written.encode("utf-32-le"), np.uint32), return_inverse=True)
    if len(numbered) < 10 * length:
        raise ConfigError(f"--text {text}: expected at least {10 * length} characters, it has {len(numbered)}.")
    coded = jnp.asarray(numbered)

    def draw(random: np.random.Generator) -> jm.Params:
        opening = {"letters": _normal(random, len(letters), width), "places": _normal(random, length, width)}
        # They are made in float32.
        theta = jax.tree.map(lambda x: x.astype(jnp.float64), transformer_parameters(random, layers, width))
        return jm.Params(opening, theta, _normal(random, width, len(letters), scale=width**-0.5))

    def batch(key: jax.Array) -> Batch:
        starts = jax.random.randint(key, (16, 1), 0, len(numbered) - length)
        windows = coded[starts + jnp.arange(length + 1)]
        return windows[:, :-1], windows[:, 1:]

    study = {
        "at init": {
            "injection": (0.50, 1.1),
            "average": (0.29, 0.40),
            "picard(0)": (0.30, 0.43),
            "picard(1)": (0.049, 0.096),
            "picard(2)": (0.0057, 0.015),
        },
        "trained": {
            "injection": (0.34, 0.57),
            "average": (0.45, 0.66),
            "picard(0)": (0.51, 0.74),
            "picard(1)": (0.082, 0.12),
            "picard(2)": (0.016, 0.033),
        },
    }
    return Subject(
        transformer_block(heads=2),
        draw,
        lambda p, x: p["letters"][x] + p["places"],
        lambda w, u, y: _cross_entropy(layer_norm(u) @ w, y),
        batch,
        layers,
        (2 * layers) ** -0.5,
        4,
        (1, 2),
        5e-3,
        400,
        study,
    )
