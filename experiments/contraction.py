"""How fast cycles converge on rough layers, by coarse step: `python -m experiments.contraction [NETWORK ...]`.

Three networks of independent layers, at their initialisation and after sequential training: tanh layers (level sets),
an MLP with layer norm (scikit-learn's digits) and a pre-norm transformer (characters of a text). For every coarse step
the factor by which a two-level cycle reduces the residual norm of the state and of the adjoint, in the library's own
`solve` and `adjoint_solve`; of the tanh layers in the second cycle, of the MLP in the first, of the transformer's state
in the first and of its adjoint in the second. Exit code 0: done; 2: the arguments cannot be used.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmgrit as jm
from experiments.config.arguments import Parser, at_least, output_file
from experiments.errors import ConfigError
from experiments.networks.blocks import layer_norm, transformer_block, transformer_parameters
from experiments.rough.contraction import residuals
from experiments.runs import terminal

PyTree = Any
COARSE: dict[str, dict[str, Any]] = {
    "injection": {},
    "average": {"coarse_params": jm.average},
    **{f"picard({p})": {"coarse_params": jm.all_layers, "coarse_step": jm.picard(p)} for p in (0, 1, 2, 3)},
}


class Subject(NamedTuple):
    """A network that is looked at.

    Attributes:
        step: Phi(theta, u, h) -> u_next.
        params: to be trained.
        u0: the first state, from the parameters of the opening layer.
        loss: (parameters of the closing layer, final state) -> scalar.
        h: step size.
        factor: m.
        cycles: of state and adjoint, whose reduction is told; from 1.
        rate: of Adam.
    """

    step: Callable[[PyTree, jax.Array, Any], jax.Array]
    params: jm.Params
    u0: Callable[[PyTree], jax.Array]
    loss: Callable[[PyTree, jax.Array], jax.Array]
    h: float
    factor: int
    cycles: tuple[int, int]
    rate: float


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = Parser("python -m experiments.contraction", description=__doc__ and __doc__.partition("\n\n")[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"{', '.join(MAKERS)}; all by default")
    parser.add_argument("--iterations", type=at_least(0), default=300, metavar="I", help="of training")
    parser.add_argument("--layers", type=at_least(8), metavar="N", help="layers of every network")
    parser.add_argument("--text", metavar="FILE", help="of characters; by default this command's own source")
    parser.add_argument("--output", type=output_file, metavar="FILE", help="write the figures as JSON")
    try:
        options = parser.parse_args(sys.argv[1:] if words is None else words)
        if unknown := [name for name in options.networks if name not in MAKERS]:
            raise ConfigError(f"{unknown[0]}: expected {', '.join(MAKERS)}")
        jax.config.update("jax_enable_x64", True)  # the second cycle of a good coarse step is below float32's rounding
        made = {name: MAKERS[name](options.layers, options.text) for name in options.networks or MAKERS}
    except ConfigError as error:
        print(f"argument error:\n  {error}", file=sys.stderr)
        return 2
    rows = {}
    for name, subject in made.items():
        after = trained(subject, options.iterations)
        rows[name] = {"at init": factors(subject, subject.params), "trained": factors(subject, after)}
        print("\n".join(table(name, rows[name], options.iterations)))
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def factors(subject: Subject, params: jm.Params) -> dict[str, tuple[float, float]]:
    """The reduction of state and adjoint residuals by a cycle, for every coarse step."""
    u0, reduced = subject.u0(params.opening), {}
    for name, coarse in COARSE.items():
        solver = jm.MGRIT(subject.factor, levels=2, cycles=max(subject.cycles) + 1, **coarse)
        norms = residuals(
            subject.step, params.layers, u0, lambda u: subject.loss(params.closing, u), subject.h, solver
        )[:2]
        of_state, of_adjoint = (float(x[i] / x[i - 1]) for x, i in zip(norms, subject.cycles, strict=True))
        reduced[name] = of_state, of_adjoint
    return reduced


def trained(subject: Subject, iterations: int) -> jm.Params:
    """Parameters after sequential training by Adam on all points."""
    optimizer = optax.adam(subject.rate)

    def objective(params: jm.Params) -> jax.Array:
        def one(u: jax.Array, theta: PyTree) -> tuple[jax.Array, None]:
            return subject.step(theta, u, subject.h), None

        return subject.loss(params.closing, jax.lax.scan(one, subject.u0(params.opening), params.layers)[0])

    @jax.jit
    def run(params: jm.Params) -> jm.Params:
        def one(carry: PyTree, _: None) -> tuple[PyTree, None]:
            params, state = carry
            updates, state = optimizer.update(jax.grad(objective)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(one, (params, optimizer.init(params)), None, length=iterations)[0][0]

    after: jm.Params = run(subject.params)
    return after


def table(name: str, factors: dict[str, dict[str, tuple[float, float]]], iterations: int) -> list[str]:
    """One line per coarse step."""
    columns = [f"{when}: state  adjoint" for when in ("at init", f"after {iterations}")]
    lines = [f"\n{name}", f"{'coarse step':<12}" + "".join(f"{column:>28}" for column in columns)]
    for coarse in COARSE:
        cells = [f"{a:.2g}  {b:>7.2g}" for a, b in (factors[when][coarse] for when in factors)]
        lines.append(f"{coarse:<12}" + "".join(f"{cell:>28}" for cell in cells))
    return lines


def _normal(random: np.random.Generator, *shape: int, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * random.normal(size=shape))


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def tanh_layers(layers: int | None, text: str | None) -> Subject:
    """Tanh layers of width 8, T = 5, on points of five level sets."""
    layers, random = layers or 256, np.random.default_rng(0)
    x = random.uniform(-1, 1, size=(300, 2))
    labels = jnp.asarray(np.digitize(np.sin(3 * x[:, 0]) + np.cos(4 * x[:, 1]), [-1.0, -0.3, 0.4, 1.1]))
    points = jnp.asarray(x)
    params = jm.Params(
        _normal(random, 2, 8), _normal(random, layers, 8, 8, scale=0.3), _normal(random, 8, 5, scale=0.3)
    )

    def step(w: PyTree, u: jax.Array, h: Any) -> jax.Array:
        return u + h * jnp.tanh(u @ w)

    def u0(w: PyTree) -> jax.Array:
        return jnp.tanh(points @ w)

    return Subject(step, params, u0, lambda w, u: _cross_entropy(u @ w, labels), 5 / layers, 8, (2, 2), 1e-2)


def mlp(layers: int | None, text: str | None) -> Subject:
    """Residual MLP layers with layer norm, width 64, on 64 of scikit-learn's digits.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ConfigError("mlp: scikit-learn, which has the digits, is not installed; pip install scikit-learn.")
    from sklearn.datasets import load_digits

    layers, random = layers or 128, np.random.default_rng(1)
    x, y = load_digits(return_X_y=True)
    images, labels = jnp.asarray((x[:64] - x.mean()) / x.std()), jnp.asarray(y[:64])
    theta = {name: _normal(random, layers, 64, 64, scale=0.125) for name in ("up", "down")}
    params = jm.Params(_normal(random, 64, 64, scale=0.125), theta, _normal(random, 64, 10, scale=0.125))

    def step(p: PyTree, u: jax.Array, h: Any) -> jax.Array:
        return u + h * (jax.nn.gelu(layer_norm(u) @ p["up"]) @ p["down"])

    def loss(w: PyTree, u: jax.Array) -> jax.Array:
        return _cross_entropy(layer_norm(u) @ w, labels)

    return Subject(step, params, lambda w: images @ w, loss, layers**-0.5, 8, (1, 1), 3e-3)


def transformer(layers: int | None, text: str | None) -> Subject:
    """Pre-norm transformer layers, d = 16, 2 heads, 16 characters, to foretell the next character.

    Raises:
        ConfigError: the text cannot be read, or is too short.
    """
    layers, random, width, length, batch = layers or 32, np.random.default_rng(2), 16, 16, 16
    try:
        written = Path(text or __file__).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text {text}: {error}") from None
    letters, coded = np.unique(list(written), return_inverse=True)
    if len(coded) < 10 * length:
        raise ConfigError(f"--text {text}: expected at least {10 * length} characters, it has {len(coded)}.")
    starts = random.integers(0, len(coded) - length - 1, size=batch)
    pieces = jnp.asarray(np.stack([coded[s : s + length + 1] for s in starts]))
    opening = {
        "letters": _normal(random, len(letters), width, scale=0.7),
        "places": _normal(random, length, width, scale=0.7),
    }
    closing = _normal(random, width, len(letters), scale=width**-0.5)
    # They are made in float32.
    theta = jax.tree.map(lambda x: x.astype(jnp.float64), transformer_parameters(random, layers, width))
    params = jm.Params(opening, theta, closing)

    def loss(w: PyTree, u: jax.Array) -> jax.Array:
        return _cross_entropy(layer_norm(u) @ w, pieces[:, 1:])

    def u0(p: PyTree) -> jax.Array:
        return p["letters"][pieces[:, :-1]] + p["places"]

    return Subject(transformer_block(heads=2), params, u0, loss, (2 * layers) ** -0.5, 4, (1, 2), 5e-3)


MAKERS: dict[str, Callable[[int | None, str | None], Subject]] = {
    "tanh": tanh_layers,
    "mlp": mlp,
    "transformer": transformer,
}


if __name__ == "__main__":
    terminal.run(main)
