"""What a model says of a GPU before there is one: latencies of a layer, and a roofline where layers are large.

A layer in a scan takes a few launches of kernels, however small it is; intervals that go through a layer at once share
them. Their arithmetic and their traffic count as soon as they take longer. The figures are round numbers of a data
centre's GPU of these years, not measured ones: what is measured will say how far they are off.
"""

import math
from dataclasses import dataclass

import jaxmgrit as jm
from jaxmgrit.analysis.cost_model import Costs, Counts, Sizes, iteration_counts

FLOAT = 4  # bytes of a float32
NEWTONS = 2  # iterations on a GRU whose intervals are longer than its memory: one, and one that sees it


@dataclass(frozen=True)
class Gpu:
    """What the model assumes of a GPU.

    Attributes:
        forward: seconds of one pass of a scan with a small layer.
        backward: seconds of one pass of its transpose.
        level: seconds of a level of an associative scan.
        flops: arithmetic operations of float32 a second, of matrix products.
        bandwidth: bytes a second.
    """

    forward: float = 10e-6
    backward: float = 25e-6
    level: float = 6e-6
    flops: float = 4e13
    bandwidth: float = 2.5e12

    def seconds(self, latency: float, flops: float, traffic: float) -> float:
        """Of a pass of a scan."""
        return max(latency, flops / self.flops, traffic / self.bandwidth)


@dataclass(frozen=True)
class Layer:
    """A dense tanh layer: its arithmetic and traffic.

    Attributes:
        width: features of a state.
        batch: points.
    """

    width: int
    batch: int

    def passes(self, gpu: Gpu, at_once: int) -> tuple[float, float, float]:
        """Seconds of Phi, of its pullback to the state, and of that to the parameters too, of so many layers at once.

        A pullback has a product of matrices more than Phi for what it is pulled back to.
        """
        flops = 2.0 * at_once * self.batch * self.width**2
        traffic = 3.0 * FLOAT * at_once * self.batch * self.width
        return (
            gpu.seconds(gpu.forward, flops, traffic),
            gpu.seconds(gpu.backward, flops, 2 * traffic),
            gpu.seconds(gpu.backward, 2 * flops, 2 * traffic),
        )


def one_shot(gpu: Gpu, layers: int, layer: Layer, solver: jm.MGRIT) -> float:
    """Time of an iteration that predicts, then sweeps, over that of the sequential gradient.

    Args:
        gpu: What is assumed.
        layers: N.
        layer: Every one of them.
        solver: Two levels, `midpoint` or Picard sweeps; of state and adjoint.
    """
    phi, vjp, grad = layer.passes(gpu, 1)
    level = solver.hierarchy(layers, 1)[0]
    swept = [seconds / level.share for seconds in layer.passes(gpu, level.share)]
    sweeps = getattr(solver.coarse_step, "sweeps", None)
    if sweeps is None:
        coarse = 2 * phi, 2 * vjp
    else:
        wide = layer.passes(gpu, level.factor)
        coarse = sweeps * wide[0], sweeps * wide[1]
    costs = Costs(swept[0], swept[1], swept[2], phi, vjp, grad, *coarse)
    sizes = Sizes(FLOAT * layer.batch * layer.width, FLOAT * layer.width * (layer.width + 1), FLOAT)
    counts: list[tuple[Counts, ...]] = list(iteration_counts(jm.PredictThenSweep(), layers, solver, solver, 1, sizes))
    # The sequential program keeps all states: of the tuned ones the fastest, where layers are small.
    return sum(costs.seconds(part) for part in counts) / (layers * (phi + grad))


def newton(gpu: Gpu, steps: int, width: int, batch: int, factor: int) -> dict[str, float]:
    """Time of the gradient of a GRU's weights over that of backpropagation.

    Args:
        gpu: What is assumed.
        steps: N.
        width: d, components of state and input.
        batch: samples.
        factor: m.

    Returns:
        "newton" for state and adjoint, "prefix" for the adjoint alone, after a sequential state.
    """
    intervals = -(-steps // factor)
    cell = 2.0 * batch * 6 * width * width  # three products with the input, three with the state
    traffic = FLOAT * 8.0 * batch * width
    ahead = gpu.seconds(gpu.forward, cell, traffic)
    back = gpu.seconds(gpu.backward, 2 * cell, 2 * traffic)
    # A sweep carries d tangents, or pulls d cotangents back, of all intervals at once.
    many = intervals * (1 + width)
    tangents = factor * gpu.seconds(gpu.forward, many * cell, many * traffic)
    cotangents = factor * gpu.seconds(gpu.backward, many * cell, many * traffic)
    # Up and down the tree; every level's products, d x d, add up to two for an interval.
    products = 2.0 * intervals * batch * width**2
    tree = 2 * math.ceil(math.log2(intervals)) * gpu.level
    tree += 2 * gpu.seconds(0.0, 2 * products * width, 3 * FLOAT * products)
    gradient = factor * (
        gpu.seconds(gpu.forward, intervals * cell, intervals * traffic)
        + gpu.seconds(gpu.backward, 2 * intervals * cell, 2 * intervals * traffic)
    )
    state, adjoint = NEWTONS * (tangents + tree), cotangents + tree + gradient
    best = steps * (ahead + back)
    return {"newton": (state + adjoint) / best, "prefix": (steps * ahead + adjoint) / best}
