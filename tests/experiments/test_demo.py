"""The demo: what it refuses. That every part of it runs, and says what it writes, is looked at in tests/docs."""

from experiments import demo


def test_a_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert demo.main(["--folder", str(tmp_path / "file" / "demo")]) == 2
    assert "cannot be made" in capsys.readouterr().err
