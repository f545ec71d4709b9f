"""Pictures of measurements from the files that commands leave: what is drawn is what is in them."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from experiments.pictures import scaling, speed_up, time_to_accuracy
from experiments.pictures.__main__ import main

DATA = Path(__file__).parents[2] / "docs" / "results" / "data"


def run(method, rate, seed, reached, *accuracies):
    points = [(10 * i, 2.0 * i * (1 + seed), a) for i, a in enumerate(accuracies)]
    return {"method": method, "rate": rate, "seed": seed, "reached": reached, "points": points}


RUNS = [
    run("a", 0.1, 0, 1, 0.2, 0.95, 0.96),
    run("a", 0.1, 1, 1, 0.4, 0.95, 0.96),
    run("a", 0.1, 2, None, 0.3, 0.5, 0.6),
    run("a", 0.2, 0, 2, 0.2, 0.5, 0.96),
    run("a", 0.2, 1, 2, 0.2, 0.5, 0.96),
    run("a", 0.2, 2, 2, 0.2, 0.5, 0.96),
    run("b", 0.1, 0, None, 0.2, 0.3),
]


def test_a_method_is_judged_by_the_rate_with_the_smallest_median_time():
    best = time_to_accuracy.best_rates({"runs": RUNS})
    assert [best["a"][0], len(best["a"][1]), best["b"][0]] == [0.1, 3, 0.1]
    whole = {"target": 0.95, "runs": RUNS, "config": {"network": {"layers": 7}}}
    figure = time_to_accuracy.figure(whole)
    axes = figure.axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["a, rate 0.1: 4.0 s", "b, rate 0.1: not reached"]
    median = next(line for line in axes.lines if line.get_label() == labels[0])
    np.testing.assert_allclose(median.get_ydata()[0], 30.0)  # of 20, 40 and 30 %
    marks = [tuple(line.get_data()) for line in axes.lines if line.get_marker() == "o"]
    assert [(float(x[0]), float(y[0])) for x, y in marks] == [(4.0, 95.0)]


def test_scaling_is_drawn_as_speed_up_with_ideal_and_split_and_what_is_modelled_is_shaded():
    rows = [
        {"devices": p, "layers": 64, "modelled": 8.0 / p, "measured": 8.0 if p == 1 else None, "data_parallel": 9.0 / p}
        for p in (1, 2, 4)
    ]
    figure = scaling.figure({"layers": 64, "factor": 8, "sequential": 16.0, "strong": rows, "weak": rows})
    lines = {line.get_label().partition(",")[0].partition(":")[0]: line for line in figure.axes[0].lines[:3]}
    np.testing.assert_allclose(lines["ideal"].get_ydata(), [1, 2, 4])
    np.testing.assert_allclose(lines["one-shot"].get_ydata(), [2, 4, 8])
    np.testing.assert_allclose(lines["batch split"].get_ydata(), 16 / 9 * np.array([1, 2, 4]))
    (shade,) = figure.axes[0].patches
    assert 1 < shade.get_x() < 2 and shade.get_x() + shade.get_width() > 4


def test_bars_are_the_best_programs_over_the_best_sequential_one():
    (case,) = json.loads((DATA / "benchmark" / "cpu_width_8_batch_500.json").read_text())["cases"]
    own = speed_up.speed_ups(case)
    fastest = {
        kind: min(row["milliseconds"] for row in case["programs"] if row["kind"] == kind and row["devices"] == 2)
        for kind in ("one-shot", "data parallel")
    }
    sequential = min(row["milliseconds"] for row in case["programs"] if row["kind"] == "sequential")
    for kind, milliseconds in fastest.items():
        assert max(own[kind, 2, mpi] for mpi in (False, True)) == pytest.approx(sequential / milliseconds)


def test_every_committed_file_of_figures_can_be_drawn_again(tmp_path, capsys):
    for name in ("scaling_1024.json", "time_to_accuracy/level_sets_1024.json", "rough/level_sets_128_T5.json"):
        picture = tmp_path / f"{Path(name).stem}.png"
        assert main([str(DATA / name), str(picture)]) == 0
        shown = matplotlib.image.imread(picture)
        assert min(shown.shape[:2]) > 400 and shown[..., :3].std() > 0.05
    several = [str(DATA / "benchmark" / f"cpu_width_8_batch_{n}.json") for n in (500, 5000)]
    assert main([*several, str(tmp_path / "bars.png")]) == 0
    assert "drawn to" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["README.md"], "README.md: expected files of figures"),
        (["README.md", "x.png"], "README.md: expected a JSON object"),
        (["nowhere.json", "x.png"], "nowhere.json: No such file"),
        ([str(DATA / "scaling_1024.json")] * 2 + ["x.png"], "only files of the benchmark"),
    ],
)
def test_what_cannot_be_drawn_is_refused(words, says, capsys):
    assert main(words) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[]",
        "\x00",
        '{"cases": 3}',
        '{"cases": [{}]}',
        '{"strong": 1, "weak": {}}',
        '{"runs": [[]], "target": 0}',
    ],
)
def test_files_that_hold_no_figures_are_refused_by_name(text, tmp_path, capsys):
    (tmp_path / "f.json").write_text(text)
    (tmp_path / "endless.json").symlink_to("/dev/zero")
    for name, said in (("f.json", "figures that a command here writes"), ("endless.json", "it is a device")):
        assert main([str(tmp_path / name), str(tmp_path / "p.png")]) == 2
        message = capsys.readouterr().err
        assert message.startswith(str(tmp_path / name)) and said in message
    assert not (tmp_path / "p.png").exists()
