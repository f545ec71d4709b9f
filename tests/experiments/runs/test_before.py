"""Runs of an earlier version are evaluated, and go on as if nothing had been.

The folders in `before/` were left by the version of November 2026, 9 and 6 iterations of the level sets:
warm mini-batches under control by Adam, and the published loop.
"""

import json
import shutil
from pathlib import Path

import pytest
from helpers.runs import rows

from experiments.evaluate import main as evaluate
from experiments.train import main

BEFORE = Path(__file__).parent / "before"
LAST = {"one_shot": 9, "published": 6}


@pytest.mark.parametrize("name", LAST)
def test_an_earlier_versions_run_has_the_accuracy_it_had(name, tmp_path, capsys):
    folder = shutil.copytree(BEFORE / name, tmp_path / name)
    summary = json.loads((folder / "summary.json").read_text())
    assert evaluate([str(folder)]) == 0
    assert f"parameters after {LAST[name]} iterations, 8 layers" in capsys.readouterr().out
    report = json.loads((folder / "evaluation.json").read_text())
    for row in report["splits"]:
        assert row["exact_loss"] == pytest.approx(summary[f"exact_{row['split']}_loss"], rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAST)
def test_an_earlier_versions_run_goes_on_from_its_checkpoint(name, tmp_path):
    folder = shutil.copytree(BEFORE / name, tmp_path / name)
    shutil.rmtree(folder / "checkpoints" / f"{LAST[name]:08d}")
    assert main(["--resume", str(folder)]) == 0
    for row, own in zip(rows(folder), rows(BEFORE / name), strict=True):
        assert row.keys() - own.keys() <= {"mismatch"}  # measured since
        assert {key: row[key] for key in own} == pytest.approx(own, rel=1e-9, abs=1e-12)


@pytest.mark.slow
def test_an_earlier_versions_run_may_be_made_longer(tmp_path):
    folder = shutil.copytree(BEFORE / "published", tmp_path / "run")
    assert main(["--resume", str(folder), "--iterations", "8"]) == 0
    assert [row["iteration"] for row in rows(folder)] == list(range(9))
