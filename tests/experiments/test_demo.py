"""The demo, on a small network: every part runs, what it prints is what it writes, and the picture is there."""

import json

import pytest

from experiments import demo


@pytest.mark.slow
def test_the_demo_times_races_counts_and_draws(tmp_path, capsys):
    assert demo.main(["--folder", str(tmp_path / "demo"), "--layers", "64", "--seconds", "0.3"]) == 0
    told = capsys.readouterr().out
    result = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert (tmp_path / "demo" / "demo.png").stat().st_size > 10_000
    for name, milliseconds in result["steps"].items():
        assert milliseconds > 0 and f"{name:22} {milliseconds:7.2f} ms" in told
    for curve in result["race"].values():
        seconds = [point[0] for point in curve]
        assert seconds == sorted(seconds) and seconds[-1] >= 0.3
        assert all(0 <= accuracy <= 1 for _, accuracy in curve)
    cycles = list(result["cycles"].values())
    assert max(cycles) <= 6 and cycles[-1] <= cycles[0], "the cycles do not grow with the number of layers"
    assert "When it does not help" in told


def test_a_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert demo.main(["--folder", str(tmp_path / "file" / "demo")]) == 2
    assert "cannot be made" in capsys.readouterr().err
