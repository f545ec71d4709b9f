"""Signals: each that announces an end makes a checkpoint, at every moment of a run, and nothing is repeated."""

import json
import signal

import pytest
from helpers.runs import assert_same, at_iteration, checkpoints, signals

from experiments.errors import Interrupted
from experiments.processes.interruption import WARNING, Interruption
from experiments.train import main
from experiments.training import evaluation
from jaxmgrit import Local


@pytest.fixture(autouse=True)
def _hangups_are_heard():
    """A suite that was started under `nohup` ignores SIGHUP, and so would what is tested here."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_with_a_checkpoint_and_resuming_repeats_nothing(
    number, code, tiny, undisturbed, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"
    at_iteration(monkeypatch, 6, signals(number))
    assert main([tiny, "--output.folder", str(folder)]) == code
    said = capsys.readouterr().err
    assert f"interrupted by {number.name} at iteration 7; go on with:" in said
    assert f"python -m experiments.train --resume {folder}" in said
    assert checkpoints(folder) == ["00000000", "00000004", "00000007"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == {"status": "interrupted", "reason": number.name, "iteration": 7}
    monkeypatch.undo()
    assert main(["--resume", str(folder)]) == 0
    assert "going on from iteration 7" in capsys.readouterr().out
    assert_same(folder, undisturbed)
    assert checkpoints(folder) == ["00000008", "00000012", "00000014"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(number, tiny, tmp_path, monkeypatch, capsys):
    at_iteration(monkeypatch, 6, signals(number, number))
    assert main([tiny, "--output.folder", str(tmp_path / "run")]) == 130
    assert "interrupted at once; from the last checkpoint, go on with" in capsys.readouterr().err
    assert checkpoints(tmp_path / "run") == ["00000000", "00000004"]


@pytest.fixture
def interruption():
    with Interruption(Local()) as interruption:
        yield interruption


@pytest.mark.parametrize("number", WARNING)
def test_a_warning_is_a_request_however_often_it_comes_and_before_an_end_too(number, interruption):
    assert interruption.requested() == 0
    signals(number, number, signal.SIGTERM)()
    assert interruption.requested() == number
    with pytest.raises(KeyboardInterrupt):
        signals(signal.SIGTERM)()


def test_handlers_are_put_back():
    numbers = (signal.SIGINT, signal.SIGTERM, *WARNING)
    before = [signal.getsignal(number) for number in numbers]
    with Interruption(Local()):
        assert all(signal.getsignal(number) not in before for number in numbers)
    assert [signal.getsignal(number) for number in numbers] == before


def test_what_nohup_has_made_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption(Local()) as interruption:
            signals(signal.SIGHUP)()
            assert interruption.requested() == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_once_nothing_is_left_to_be_saved_a_signal_ends_what_is_done_at_once(interruption):
    interruption.end_at_once(7)
    with pytest.raises(Interrupted) as raised:
        signals(signal.SIGTERM)()
    assert (raised.value.signal, raised.value.iteration) == (signal.SIGTERM, 7)


def test_what_came_while_results_were_saved_ends_what_comes_after(interruption):
    signals(signal.SIGHUP)()
    with pytest.raises(Interrupted):
        interruption.end_at_once(7)


def test_a_signal_while_pictures_are_drawn_ends_a_run_that_is_finished(finished, monkeypatch, capsys):
    from experiments.runs import pictures

    monkeypatch.setattr(pictures, "draw", lambda *given: signals(signal.SIGTERM)())
    assert main(["--resume", str(finished), "--output.pictures", "true"]) == 143
    said = capsys.readouterr().err
    assert f"interrupted by SIGTERM after the end of the training; all but the pictures is in {finished}" in said
    assert json.loads((finished / "summary.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_a_signal_during_the_last_evaluation_does_not_wait_for_its_end(finished, undisturbed, monkeypatch, capsys):
    plain = evaluation._parts
    monkeypatch.setattr(evaluation, "_parts", lambda *given: [*plain(*given), signals(signal.SIGUSR1)()][:-1])
    assert main(["--resume", str(finished)]) == 128 + signal.SIGUSR1
    assert "interrupted by SIGUSR1 at iteration 14; go on with:" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["--resume", str(finished)]) == 0
    assert_same(finished, undisturbed)
