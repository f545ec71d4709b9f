"""Scaling as published: the path of weak V-cycles grows with the levels alone; the model adds up what is counted."""

import json

import numpy as np

from experiments.pictures import __main__ as pictures
from experiments.published import ways
from experiments.timing.contenders import Case
from jaxmgrit.analysis.cost_model import Sizes

CASE = Case(64, 8, 4, "float32", 16)


def path(name, devices):
    """Of a gradient of four layers a device."""
    return ways.path(ways.counted(ways.WEAK[name], ways.SHARE * devices, devices, Sizes(1000, 288, 4)))


def test_the_path_of_v_cycles_with_four_layers_a_device_grows_with_the_number_of_levels():
    few, less, some, many = (path("2 + 2 V-cycles", devices) for devices in (8, 16, 64, 1024))
    for what in ("phi", "pullbacks", "messages"):
        assert few[what] < some[what] < many[what]
        assert many[what] <= 3 * few[what]
        assert many[what] <= 1.75 * some[what]
        # As much more for every level: 64, 256 and 4096 layers have 3, 4 and 6, the coarsest of four layers.
        assert many[what] - some[what] == 2 * (some[what] - less[what])


def test_modelled_seconds_are_the_measured_costs_of_what_is_counted_and_measured_once():
    asked = []

    def ask(task, *args):
        asked.append((task, args[1:]))
        return (1e-6, 2e-6, 3e-6) if task is ways.sweeps else (5e-6, 7e-6)

    known = ways.Known(ask, CASE, (1e-3, 0.0))
    way = ways.WEAK["2 + 2 V-cycles"]
    times = [known.seconds("v", way, 4 * devices, devices) for devices in (8, 8, 64)]
    assert times[0] == times[1] < times[2]
    assert len(asked) == len(set(asked)) == 2  # of one interval in a sweep, and coarse
    # Messages dominate: what is beyond them are microseconds.
    messages = ways.path(ways.counted(way, 32, 8, ways.sizes_of(CASE)))["messages"]
    np.testing.assert_allclose(times[0], messages * 1e-3, rtol=0.02)


def test_figures_are_drawn_again(tmp_path):
    def rows(names, more):
        every = [{"devices": n, "layers": 4 * n, "modelled": {k: 9.0 / n for k in names}} for n in (1, 2, 4)]
        return [row | {"measured": row["modelled"] if row["devices"] < 3 else {}} | more for row in every]

    strong = {
        "case": {"layers": 16, "width": 8, "batch": 4},
        "sequential": 8.0,
        "crossing": dict.fromkeys(ways.STRONG, 2) | {"one-shot, picard(2)": None},
        "rows": rows(ways.STRONG, {"batch split": 5.0, "pipeline": 4.0}),
    }
    result = {"micro_batches": 8, "published_weak": rows(ways.WEAK, {}), "published_strong": {"a": strong}}
    (tmp_path / "published.json").write_text(json.dumps(result))
    assert pictures.main([str(tmp_path / "published.json"), str(tmp_path / "picture.png")]) == 0
    assert (tmp_path / "picture.png").stat().st_size > 10000
