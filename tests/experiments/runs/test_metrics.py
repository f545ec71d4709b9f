"""Rows of metrics: damaged lines are skipped and counted, missing ones noticed, whatever the file is."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.runs.files import Unreadable
from experiments.runs.metrics import NUMBERS, Lines, check_table, read_table


def row(iteration):
    return {"iteration": iteration, **{name: 0.5 + iteration for name in NUMBERS}, "result": 0}


def text(*iterations):
    return "".join(json.dumps(row(i)) + "\n" for i in iterations).encode()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("metrics") / "metrics.jsonl"


def numbers(table):
    return [row["iteration"] for row in table.rows]


def test_what_was_written_is_read_and_a_half_written_end_is_no_damage(file):
    file.write_bytes(text(*range(9)) + b'{"iteration": 9, "inex')
    table = read_table(file)
    assert table.rows == [row(i) for i in range(9)]
    assert not table.damaged and check_table(table, 9, gaps=False) == []


@settings(max_examples=300, deadline=None, derandomize=True)
@given(bit=st.integers(0, 8 * len(text(*range(8, 13))) - 1))
def test_one_flipped_bit_loses_two_rows_at_most_and_never_the_order(bit, file):
    data = bytearray(text(*range(13)))
    data[bit // 8 - len(text(*range(8, 13)))] ^= 1 << bit % 8
    file.write_bytes(data)
    table = read_table(file)
    assert numbers(table) == sorted(set(numbers(table)) & set(range(13)))
    assert len(table.rows) >= 11 and len(table.damaged) <= 2
    remarks = check_table(table, 13, gaps=False) if data.endswith(b"\n") else []
    assert bool(table.damaged) == any("damaged" in remark for remark in remarks) or not data.endswith(b"\n")
    if len(table.rows) < 13 and data.endswith(b"\n"):
        assert table.damaged


@pytest.mark.parametrize(
    ("damaged", "kept"),
    [
        (text(0, 1, 1, 3, 4), [0, 1, 3, 4]),
        (text(0, 1, 66, 3, 4), [0, 1, 3, 4]),
        (text(0, 1) + b"\xff\n" + text(3, 4), [0, 1, 3, 4]),
        (text(0, 1) + b"[" * 3000 + b"\n" + text(3, 4), [0, 1, 3, 4]),
        (text(0, 1) + b'{"iteration": 2}\n' + text(3, 4), [0, 1, 3, 4]),
        (text(0, 1) + text(2).replace(b"2.5", b"Infinity") + text(3, 4), [0, 1, 3, 4]),
        (text(0, 1) + text(2).replace(b"2.5", b'"2.5"') + text(3, 4), [0, 1, 3, 4]),
        (text(0, 1) + text(2).replace(b"2.5", b"1e999") + text(3, 4), [0, 1, 3, 4]),
        (text(0, 1) + text(2).replace(b"2.5", b"9" * 400) + text(3, 4), [0, 1, 3, 4]),
        (text(0, 1) + text(2).replace(b"2.5", b"true") + text(3, 4), [0, 1, 3, 4]),
        (text(0, 1) + b"x" * 20_000 + b"\n" + text(3, 4), [0, 1, 3, 4]),
    ],
)
def test_a_line_that_is_no_row_or_out_of_order_is_skipped_and_named(damaged, kept, file):
    file.write_bytes(damaged)
    table = read_table(file)
    assert numbers(table) == kept and table.damaged == [3]
    assert check_table(table, 5, gaps=False) == [
        "metrics.jsonl: damaged, and skipped: line 3",
        "metrics.jsonl: 1 of the 5 rows before iteration 5 are missing",
    ]


@pytest.mark.parametrize("iterations", [[], range(4), [0, 1, 2, 6], range(3, 7)])
def test_rows_that_are_missing_without_a_damage_are_refused_unless_gaps_are_borne(iterations, file):
    file.write_bytes(text(*iterations))
    with pytest.raises(Unreadable, match=f"it has {len(iterations)} of the 7 rows before iteration 7"):
        check_table(read_table(file), 7, gaps=False)
    (remark,) = check_table(read_table(file), 7, gaps=True)
    assert remark == f"metrics.jsonl: {7 - len(iterations)} of the 7 rows before iteration 7 are missing"


def test_damage_after_the_iteration_from_which_training_goes_on_does_not_matter(file):
    file.write_bytes(text(*range(5)) + b"nonsense\n" + text(9))
    assert check_table(read_table(file), 5, gaps=False) == []


def test_a_file_that_is_too_large_a_device_or_missing_is_refused(file, tmp_path):
    file.write_bytes(text(0, 1))
    with file.open("r+b") as opened:
        opened.truncate(2**40)  # a hole, which takes no space
    with pytest.raises(Unreadable, match="its 1099511627776 bytes are more than 10 rows can have"):
        read_table(file, most=10)
    with pytest.raises(Unreadable, match="it holds no row in more than 1048576 bytes"):
        read_table(file)
    (tmp_path / "endless").symlink_to("/dev/zero")
    for act in (read_table, Lines):
        with pytest.raises(Unreadable, match="expected a regular file"):
            act(tmp_path / "endless")
    with pytest.raises(Unreadable, match="cannot be read: No such file"):
        read_table(tmp_path / "missing")


@pytest.mark.parametrize("damage", [b"", b"nonsense\n"])
def test_cutting_keeps_the_rows_before_an_iteration_and_nothing_after_them(damage, file):
    file.write_bytes(text(0, 1) + damage + text(2, 3, 4) + b'{"iteration": 5, "')
    lines = Lines(file)
    lines.cut_rows(3)
    lines.add(row(3))
    lines.close()
    assert file.read_bytes() == text(0, 1) + damage + text(2, 3)


def test_a_file_that_is_replaced_meanwhile_is_told_of_and_never_cut(file):
    """The rows of this run stay where they are, and nothing of another file is taken for them, or removed."""
    file.write_bytes(text(0, 1, 2))
    lines = Lines(file)
    assert lines.is_in_place()
    moved = file.rename(file.with_name("moved"))
    assert not lines.is_in_place()
    file.write_bytes(text(0, 1, 2, 3))
    assert not lines.is_in_place()
    lines.cut_rows(2)
    lines.add(row(2))
    assert moved.read_bytes() == text(0, 1, 2) and file.read_bytes() == text(0, 1, 2, 3)
    assert lines.cut_lines(1) == 1 and moved.read_bytes() == text(0)
    lines.close()


def test_lines_are_counted_up_to_the_first_that_is_none(file):
    file.write_bytes(b"{}\n{}\n" + bytes(10_000) + b"\n{}\n")
    with file.open("r+b") as opened:
        opened.truncate(2**42)
    lines = Lines(file)
    assert lines.cut_lines(2**60) == 2
    lines.close()
    assert file.read_bytes() == b"{}\n{}\n"


def test_what_cannot_be_written_leaves_nothing_of_itself(file, monkeypatch):
    file.write_bytes(text(0))
    lines = Lines(file)

    class Full:
        """Takes ten bytes, then no more."""

        def __init__(self, opened):
            self.opened, self.room = opened, 10

        def __getattr__(self, name):
            return getattr(self.opened, name)

        def write(self, data):
            if not self.room:
                raise OSError(28, "No space left on device")
            self.room = 0
            return self.opened.write(bytes(data)[:10])

    monkeypatch.setattr(lines, "_file", Full(lines._file))
    with pytest.raises(OSError, match="No space") as raised:
        lines.add(row(1))
    lines.close()
    assert raised.value.filename == str(file)
    assert file.read_bytes() == text(0)
