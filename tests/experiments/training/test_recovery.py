"""Steps back: from what goes wrong to the last good state, a bounded number of times."""

import dataclasses
import json

import pytest
from helpers.runs import checkpoints, rows

import jaxmgrit as jm
from experiments.config.schema import Recovery
from experiments.errors import TrainingStopped
from experiments.train import main
from experiments.training.checkpoint import Checkpoint
from experiments.training.course import Course
from experiments.training.recovery import stepped_back
from jaxmgrit.analysis.control import ControlState

SGD = ["--optimizer.name", "sgd", "--optimizer.anticipate", "0", "--optimizer.schedule", "constant"]


@pytest.mark.slow
def test_a_training_that_blows_up_steps_back_and_goes_on_with_a_smaller_rate(tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    words = [*SGD, "--optimizer.learning-rate", "1e4", "--recovery.rate-factor", "1e-5", "--output.folder", str(folder)]
    assert main([tiny, *words]) == 0
    (event,) = (json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines())
    assert event["action"] == "back to iteration 0, learning rate x 1e-05"
    assert "inexact_loss = " in event["reason"]
    assert f"iteration {event['iteration']}: back to iteration 0" in capsys.readouterr().out
    assert [row["iteration"] for row in rows(folder)] == list(range(15))
    losses = [row["inexact_loss"] for row in rows(folder)]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_steps_back_are_limited_and_the_run_ends_with_a_sentence(tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    words = [*SGD, "--optimizer.learning-rate", "1e300", "--recovery.attempts", "2", "--output.folder", str(folder)]
    assert main([tiny, *words]) == 1
    said = capsys.readouterr().err
    assert "stopped: iteration 1, after 2 steps back with ever smaller learning rates: " in said
    assert "Lower optimizer.learning_rate" in said
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"
    assert not (folder / "parameters.npz").exists()
    assert checkpoints(folder) == ["00000000"]


@pytest.mark.slow
def test_what_is_not_finite_never_gets_into_a_checkpoint(tiny, tmp_path):
    folder = tmp_path / "run"
    words = [*SGD, "--optimizer.learning-rate", "1e300", "--recovery.attempts", "0", "--checkpoints.every", "1"]
    assert main([tiny, *words, "--output.folder", str(folder)]) == 1
    assert checkpoints(folder) == ["00000000"]


def test_a_step_back_shrinks_the_rate_as_the_config_says_and_takes_a_more_exact_solver():
    good = Checkpoint(jm.Snapshot(None, None, None, 40), Course(rate=0.5, events=3, setbacks=1).to_json())
    course = Course(seconds=9.0, events=5, rate=0.5, setbacks=1, diverging=7, control=ControlState(rung=1, check=90))
    recovery = Recovery(attempts=3, rate_factor=0.3)
    after = stepped_back(course, good, {"iteration": 47}, "it diverges", recovery, rungs=3)
    assert after.rate == pytest.approx(0.15) and after.setbacks == 2
    assert after.control == ControlState(rung=2, check=40, since=40)
    assert (after.seconds, after.events, after.diverging) == (9.0, 5, 0)
    assert stepped_back(after, good, {"iteration": 47}, "again", recovery, rungs=3).control.rung == 2  # the last
    with pytest.raises(TrainingStopped, match="iteration 47, after 3 steps back .*: again"):
        stepped_back(dataclasses.replace(after, setbacks=3), good, {"iteration": 47}, "again", recovery, rungs=3)
