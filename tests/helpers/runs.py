"""A tiny training, and what tests ask of the folders that it leaves."""

import json
import os

import numpy as np

from experiments.runs import recorder
from experiments.runs.folder import read_metrics

TINY = """
name: tiny
dtype: float64
iterations: 14
problem: {name: level_sets, train_per_class: 20, validation_per_class: 10}
network: {layers: 19, width: 4}
optimizer: {learning_rate: 0.02, schedule: cosine, anticipate: 0.1}
training: {schedule: predict_then_sweep}
solver: {coarsening_factor: 4, levels: 2, coarse_params: average, coarse_step: midpoint}
evaluation: {every: 5}
checkpoints: {every: 4}
output: {pictures: false}
"""


def rows(folder):
    """The metrics without times."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(folder)]


def assert_same(folder, undisturbed):
    """Two runs have the same metrics and parameters, bit for bit, and have come to their end."""
    assert rows(folder) == rows(undisturbed)
    a, b = (np.load(run / "parameters.npz") for run in (folder, undisturbed))
    for name in b.files:
        np.testing.assert_array_equal(a[name], b[name])
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"


def at_iteration(monkeypatch, iteration, act):
    """Call `act` when the row of an iteration has been written."""
    plain = recorder.Recorder.row

    def row(self, row):
        plain(self, row)
        if row["iteration"] == iteration:
            act()

    monkeypatch.setattr(recorder.Recorder, "row", row)


def signals(*numbers):
    """What sends this process signals, one after another."""
    return lambda: [os.kill(os.getpid(), number) for number in numbers]


def checkpoints(folder):
    """Names of what lies among the checkpoints."""
    return sorted(path.name for path in (folder / "checkpoints").iterdir())
