"""Runs afterwards: predictions from a file, a table of runs, two side by side, sweeps."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest

from experiments import predict
from experiments.foundation.files import write_output
from experiments.problems import level_sets
from experiments.runs import __main__ as runs
from experiments.runs.pictures import comparison
from experiments.sweep import __main__ as sweep
from experiments.train import main as train


def test_predictions_are_those_of_the_exact_network(finished, tmp_path, capsys):
    points = level_sets.grid(16)[:40]
    np.savez(tmp_path / "points.npz", x=points)
    (tmp_path / "points.csv").write_text("x1,x2\n" + "".join(f"{a!r},{b!r}\n" for a, b in points.tolist()))
    said = []
    for name in ("points.npz", "points.csv"):
        assert predict.main([str(finished), "--input", str(tmp_path / name)]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    header, *lines = said[0].splitlines()
    assert header == "point,class,probability" and len(lines) == 40
    assert all(0.2 <= float(line.split(",")[2]) <= 1 for line in lines)
    assert predict.main([str(finished), "--input", str(tmp_path / "points.npz"), "--output", str(tmp_path / "o")]) == 0
    assert (tmp_path / "o").read_text() == said[0]
    assert predict.main([str(finished), "--input", str(tmp_path / "points.npz"), "--iteration", "8"]) == 0
    assert capsys.readouterr().out != said[0]


def test_what_lies_under_an_outputs_name_is_written_into_and_never_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    row = {"iteration": 1, "exact_validation_loss": 1.0, "exact_validation_accuracy": 0.5, "seconds": 1.0}
    comparison.draw({"a": [row], "b": [row]}, tmp_path / "link")
    assert (tmp_path / "file").read_bytes()[:4] == b"\x89PNG"
    write_output(tmp_path / "pipe", "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "pipe").is_fifo()
    with pytest.raises(OSError, match="No space left") as caught:
        write_output(Path("/dev/full"), "text")
    assert caught.value.filename == "/dev/full"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--input: missing; expected a file of inputs"),
        (["--inptu", "x"], "--inptu: unknown option. Did you mean --input?"),
        (["--input", "nowhere.csv"], "--input nowhere.csv: no such file"),
        (["--input", "NAN"], "expected finite numbers that float64 can hold, but those of point 1 are not"),
        (["--input", "HEADLESS"], "expected names of columns in its first line, found 1.5, 2.5"),
        (["--input", "WIDE"], "expected inputs of shape (points, 2), numbers as in training, found float64 of shape"),
    ],
)
def test_predictions_that_cannot_be_had(words, message, undisturbed, tmp_path, capsys):
    np.save(tmp_path / "wide.npy", np.zeros((3, 5)))
    np.save(tmp_path / "nan.npy", [[0.1, 0.2], [0.1, np.nan]])
    (tmp_path / "headless.csv").write_text("1.5,2.5\n0.1,0.2\n")
    files = {"WIDE": "wide.npy", "NAN": "nan.npy", "HEADLESS": "headless.csv"}
    words = [str(tmp_path / files[word]) if word in files else word for word in words]
    assert predict.main([str(undisturbed), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_table_of_runs_and_two_side_by_side(finished, tmp_path, capsys):
    other = shutil.copytree(finished, tmp_path / "other")
    (other / "summary.json").unlink()
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("learning_rate: 0.02", "learning_rate: 0.03"))
    assert runs.main([str(tmp_path)]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    accuracy = json.loads((finished / "summary.json").read_text())["exact_validation_accuracy"]
    assert header.split() == list(runs.COLUMNS) and len(lines) == 2
    found = {line.split()[0]: line.split()[1:] for line in lines}
    assert found["finished"][:5] == ["finished", "14", "19", "one_shot", f"{accuracy:.2%}"]
    assert found["other"][0] == "unfinished"
    assert runs.main(["compare", str(finished), str(other), "--output", str(tmp_path / "c.png")]) == 0
    assert "optimizer.learning_rate: 0.02 | 0.03" in capsys.readouterr().out
    assert matplotlib.image.imread(tmp_path / "c.png").std() > 0.01


def test_a_damaged_run_hides_no_other_and_null_is_no_evaluation(finished, tmp_path, capsys):
    """Whatever lies under the names of a run's files, the table has a line for it, and for all others."""
    for name, damage in {
        "pipe": lambda run: os.mkfifo(run / "summary.json"),
        "endless": lambda run: (run / "summary.json").symlink_to("/dev/zero"),
        "deep": lambda run: (run / "summary.json").write_text("[" * 100_000),
        "kind": lambda run: (run / "summary.json").write_text('{"status": ["finished"], "iteration": {}}'),
        "metrics": lambda run: ((run / "metrics.jsonl").unlink(), (run / "metrics.jsonl").mkdir()),
        "config": lambda run: ((run / "config.yaml").unlink(), (run / "config.yaml").symlink_to("nowhere")),
    }.items():
        run = shutil.copytree(finished, tmp_path / name)
        (run / "summary.json").unlink()
        damage(run)
    assert runs.main([str(tmp_path)]) == 0
    lines = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines == {
        "finished": "finished", "pipe": "unfinished", "endless": "unfinished", "deep": "unfinished",
        "kind": "['finished']", "metrics": "unfinished",
    }  # fmt: skip
    rows = (tmp_path / "pipe" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(rows[-1])
    nothing = dict.fromkeys(("exact_validation_loss", "exact_validation_accuracy", "seconds"))
    (tmp_path / "pipe" / "metrics.jsonl").write_text("\n".join([*rows[:-1], json.dumps(last | nothing), ""]))
    words = ["compare", str(finished), str(tmp_path / "pipe"), "--output", str(tmp_path / "c.png")]
    assert runs.main(words) == 0
    assert "pipe: iteration 10, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no run below it"),
        (["compare", "RUN"], "compare: expected two runs, given 1"),
        (["compare", "RUN", "RUN"], "given twice. Name two runs."),
        (["compare", "RUN", "nowhere"], "Name the folder of a run."),
        (["--outptu", "x"], "--outptu: unknown option. Did you mean --output?"),
    ],
)
def test_what_cannot_be_shown(words, message, undisturbed, capsys):
    assert runs.main([str(undisturbed) if word == "RUN" else word for word in words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_trains_what_is_not_done_and_reports_medians(tiny, tmp_path, capsys, monkeypatch):
    trained = []

    def here(command):
        trained.append(command[3:])
        before = jax.config.jax_enable_x64
        code = train(command[3:])
        jax.config.update("jax_enable_x64", before)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(subprocess, "run", here)
    words = [tiny, "--iterations", "2", "--seeds", "0", "1", "2", "--vary", "optimizer.learning-rate", "0.01", "0.02"]
    words += ["--folder", str(tmp_path / "sweep")]
    assert sweep.main(words[: words.index("0.02")] + words[words.index("0.02") + 1 :]) == 0
    assert len(trained) == 3
    assert sweep.main(words) == 0
    assert len(trained) == 6  # those done before are not done again
    rows = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [row["optimizer.learning_rate"] for row in rows] == ["0.01", "0.02"]
    for row in rows:
        members = (tmp_path / "sweep").glob(f"learning_rate={row['optimizer.learning_rate']},seed=*")
        losses = [json.loads((member / "summary.json").read_text())["exact_train_loss"] for member in members]
        assert row["exact_train_loss"]["median"] == np.median(losses) and row["finished"] == len(losses) == 3
    assert "3 of 3" in capsys.readouterr().out
    assert sweep.main([*words, "--network.layers", "23"]) == 2
    assert "holds another training: network differs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vary", "optimizer.larning_rate", "1"], "--vary optimizer.larning_rate: unknown key"),
        (["--vary", "optimizer.learning_rate"], "--vary optimizer.learning_rate: expected values after it"),
        (["--vary", "network.layers", "16", "-1"], "network.layers = -1: expected an integer >= 1"),
        (["--vary", "seed", "1"], "--vary seed: given twice, or decided by the sweep"),
        (["--seeds", "1", "1"], "--seeds, --vary: expected each value once"),
        (["--sedes", "1"], "--sedes: unknown option. Did you mean --seeds"),
    ],
)
def test_sweeps_that_cannot_be_run_are_refused_before_the_first_training(words, message, tiny, tmp_path, capsys):
    assert sweep.main([tiny, "--folder", str(tmp_path / "sweep"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()
