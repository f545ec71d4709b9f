"""The network evaluated exactly: layer after layer, as a user will run it."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

import jaxmgrit as jm
from experiments.config.schema import Evaluation
from experiments.networks.kinds import Classification, Regression
from experiments.problems import DataSet
from experiments.problems.data import cast

NUMBERS = 2**22  # of the states that are computed at a time


def is_due(section: Evaluation, iteration: int) -> bool:
    """Whether an exact evaluation is due before an iteration that is not the last."""
    if iteration % section.every == 0:
        return True
    # 1, 2, 5, 10, 20, 50, ...: trailing zeros are of the decade, and say nothing else.
    return section.early and iteration < section.every and str(iteration).rstrip("0") in ("1", "2", "5")


class EvaluationStopped(Exception):
    """An exact evaluation that was asked to stop.

    Attributes:
        signal: The number of the signal that asked.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class Evaluator(Protocol):
    """From a network to its loss and accuracy on a data set."""

    def __call__(self, network: Any, asked: Callable[[], int] = ..., /) -> tuple[float, float]:
        """Evaluate a trainer's state, or parameters.

        Args:
            network: The state or parameters.
            asked: Called before each part of the data: the number of a signal that asks to stop, 0 if there is none.

        Raises:
            EvaluationStopped: It was asked to.
        """


def evaluator(
    problem: jm.Problem,
    evaluate: Callable[[Any, tuple[jax.Array, jax.Array]], tuple[Any, Any]],
    data: DataSet,
    dtype: str,
    most: int | None = None,
) -> Evaluator:
    """A function to the loss and accuracy on a data set, or on `most` points spread over it.

    Args:
        problem: Of the network.
        evaluate: From a trainer's state, or parameters, and a batch to (loss, aux); it is compiled.
        data: The data set.
        dtype: Of the inputs.
        most: None: all points.
    """
    if most is not None and most < len(data.y):
        some = np.linspace(0, len(data.y) - 1, most).astype(int)
        data = DataSet(data.x[some], data.y[some])
    compiled = jax.jit(evaluate)
    parts: list[slice] = []  # found once: JAX remembers something of every function whose shapes it is asked for

    def figures(network: Any, asked: Callable[[], int] = lambda: 0) -> tuple[float, float]:
        params = network if isinstance(network, jm.Params) else network.params
        total = np.zeros(2)
        parts[:] = parts or list(_parts(problem, params, cast(data.x, dtype)))
        for part in parts:
            if signal := asked():
                raise EvaluationStopped(signal)
            loss, aux = compiled(network, tuple(jnp.asarray(cast(given[part], dtype)) for given in data))
            # Parts differ in length, so their means are weighted by it.
            total += (part.stop - part.start) * np.array([loss, aux["accuracy"]], float)
        loss, accuracy = total / len(data.y)
        return float(loss), float(accuracy)

    return figures


def logits(problem: jm.Problem, params: jm.Params, x: jax.Array) -> jax.Array:
    """The exactly evaluated network's outputs, (points, ..., classes) or (points, targets)."""
    assert isinstance(problem.loss, Classification | Regression)
    u0 = problem.opening(params.opening, x)
    u_final = jm.solve(problem.step, params.layers, u0, h=problem.h, solver=jm.Sequential()).u_final
    return problem.loss.outputs(params.closing, u_final)


def predict(problem: jm.Problem, params: jm.Params, x: np.ndarray, dtype: str) -> np.ndarray:
    """The exactly evaluated network's class of each point, (points, ...); or its numbers, (points, targets)."""
    if isinstance(problem.loss, Regression):
        return _exactly(problem, params, x, dtype, lambda outputs: outputs)
    return np.argmax(probabilities(problem, params, x, dtype), axis=-1)


def probabilities(problem: jm.Problem, params: jm.Params, x: np.ndarray, dtype: str) -> np.ndarray:
    """The exactly evaluated network's probabilities of each point's classes: (points, ..., classes)."""
    return _exactly(problem, params, x, dtype, lambda outputs: jax.nn.softmax(outputs, axis=-1))


def _exactly(
    problem: jm.Problem, params: jm.Params, x: np.ndarray, dtype: str, what: Callable[[jax.Array], jax.Array]
) -> np.ndarray:
    """Something of the exactly evaluated network's outputs, (points, ...), a part of the points at a time."""
    compiled = jax.jit(lambda params, x: what(logits(problem, params, x)))
    return np.concatenate([compiled(params, jnp.asarray(cast(x[part], dtype))) for part in _parts(problem, params, x)])


def _parts(problem: jm.Problem, params: jm.Params, x: np.ndarray) -> Iterator[slice]:
    """Slices of the points whose states are computed at a time, of at most two lengths."""
    one = jax.eval_shape(problem.opening, params.opening, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(one))
    count = math.ceil(len(x) / max(1, NUMBERS // numbers))
    # Nearly equal parts, of two lengths at most, as every length is compiled.
    ends = np.linspace(0, len(x), count + 1).astype(int).tolist()
    return (slice(*ends[i : i + 2]) for i in range(count))
