"""The regression guard: what it calls slower, and what it says where it has nothing to compare with."""

import json
import math

import pytest

from experiments.errors import ConfigError
from experiments.guard import __main__ as command
from experiments.guard import ratios, record


def test_only_what_is_more_than_a_tenth_slower_or_lost_is_slower():
    known = {"same": 1.0, "a bit": 1.0, "much": 2.0, "faster": 1.0, "lost": 1.0, "nan": 1.0}
    now = {"same": 1.0, "a bit": 1.09, "much": 2.3, "faster": 0.5, "new": 9.0, "nan": math.nan}
    rows = record.changes(known, now)
    assert [row.name for row in rows if row.slower] == ["much", "lost", "nan"]
    text = record.table(rows)
    assert "slower by 15%" in text
    for name, word in (("lost", "no longer measured"), ("new", "not in the record")):
        assert any(line.startswith(name) and line.endswith(word) for line in text.splitlines())


def test_a_record_is_written_compared_and_what_seems_slower_is_measured_again(tmp_path, monkeypatch, capsys):
    file, answers = tmp_path / "record.json", []
    monkeypatch.setattr(command.turns, "pin", lambda: "not pinned")
    monkeypatch.setattr(ratios, "GROUPS", (lambda: {"a": answers.pop(0)},))

    def run(*given, words=()):
        answers[:] = given
        return command.main(["--record", str(file), *words]), len(answers)

    assert run(1.0)[0] == 2  # no record
    assert "--renew" in capsys.readouterr().err
    assert run(1.0, words=["--renew"]) == (0, 0)
    assert json.loads(file.read_text())["ratios"] == {"a": 1.0}
    assert {"machine", "jax", "date"} <= json.loads(file.read_text()).keys()
    assert run(1.05, 7.0) == (0, 1)
    assert run(1.5, 1.02) == (0, 0)  # the first time something else was running
    assert run(1.5, 1.4) == (1, 0)
    assert "slower by 40%" in capsys.readouterr().out
    file.write_text(json.dumps({**json.loads(file.read_text()), "jax": "0.1"}))
    assert run(1.0)[0] == 0
    assert "in the record 0.1" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"ratios": 3}', '{"ratios": {"a": "x"}}'])
def test_a_file_that_is_no_record_is_refused_by_name(text, tmp_path):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(ConfigError, match=r"record.json: expected a JSON object with 'ratios'"):
        record.read(tmp_path / "record.json")
