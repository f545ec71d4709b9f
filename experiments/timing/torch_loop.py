"""PyTorch's autograd loop over the layers, to be compared with."""

import statistics
import time
from typing import Any

import numpy as np

from experiments.timing.contenders import FINAL_TIME, Case
from experiments.timing.devices import count_cores


def time_loop(memory: Any, case: Case, repeats: int) -> float:
    """Task of a worker: median seconds of a gradient by PyTorch, on the cores this process has."""
    import torch

    torch.set_num_threads(count_cores())
    dtype = getattr(torch, case.dtype)
    random = np.random.default_rng(0)
    w = torch.tensor(0.3 * random.normal(size=(case.layers, case.width, case.width)), dtype=dtype, requires_grad=True)
    b = torch.zeros(case.layers, case.width, dtype=dtype, requires_grad=True)
    x = torch.tensor(random.normal(size=(case.batch, case.width)), dtype=dtype)
    h = FINAL_TIME / case.layers

    def gradient() -> None:
        u = x
        for weight, bias in zip(w.unbind(), b.unbind(), strict=True):
            u = u + h * torch.tanh(torch.addmm(bias, u, weight))
        torch.autograd.grad((u**2).mean(), (w, b))

    seconds = []
    gradient()
    for _ in range(repeats):
        start = time.perf_counter()
        gradient()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
