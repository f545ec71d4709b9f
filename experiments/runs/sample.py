"""What a character language model writes: sample.txt of a run, text drawn from the exactly evaluated network."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxmgrit as jm
from experiments.problems import Data
from experiments.runs.files import write_whole
from experiments.runs.folder import SAMPLE
from experiments.training.evaluation import logits

SAMPLES, LENGTH = 3, 400  # texts, and characters of each that are drawn


def sample(problem: jm.Problem, params: jm.Params, prompts: np.ndarray, length: int, seed: int) -> np.ndarray:
    """Draw characters, one after another, each by the probabilities that the network gives it.

    Args:
        problem: Of a network from characters (batch, context) to logits (batch, context, classes).
        params: Its parameters.
        prompts: How the texts begin, (texts, at most context - 1) integers.
        length: How many characters to draw.
        seed: Of the draws.

    Returns:
        Prompts and what was drawn, (texts, prompt + length).
    """
    given, context = prompts.shape[1], params.opening["positions"].shape[0]
    # Of full length from the beginning: arrays that grow would be compiled anew for each character.
    texts = jnp.zeros((len(prompts), given + length), jnp.int32).at[:, :given].set(prompts)

    @jax.jit
    def written(params: jm.Params, texts: jax.Array) -> jax.Array:
        def one(at: jax.Array, texts: jax.Array) -> jax.Array:
            # What lies behind the window's last character is masked by attention: the window need not move before.
            start = jnp.maximum(at - context, 0)
            window = jax.lax.dynamic_slice_in_dim(texts, start, min(context, texts.shape[1]), axis=1)
            scores = logits(problem, params, window)[:, at - 1 - start]
            # A key for each place, so that a longer text begins as a shorter one.
            drawn = jax.random.categorical(jax.random.fold_in(jax.random.key(seed), at), scores)
            return texts.at[:, at].set(drawn.astype(texts.dtype))

        return jax.lax.fori_loop(given, given + length, one, texts)

    return np.asarray(written(params, texts))


def write_sample(folder: Path, problem: jm.Problem, params: jm.Params, data: Data, seed: int) -> None:
    """Write sample.txt: continuations of places in the validation text.

    Raises:
        OSError: It cannot be written.
    """
    x = data.validation.x
    given = max(1, x.shape[1] // 2)
    some = np.linspace(0, len(x) - 1, min(SAMPLES, len(x))).astype(int)
    drawn = sample(problem, params, x[some, :given], LENGTH, seed)
    parts = []
    for i, codes in enumerate(drawn, 1):
        text = "".join(data.names[code] for code in codes)
        parts.append(f"--- {i}: after {given} characters of the validation text ---\n{text[:given]}|{text[given:]}\n")
    write_whole(folder / SAMPLE, "\n".join(parts).encode())
