"""A reader that goes away, a full disk, an encoding without accents: no command ends by them, nor in a traceback."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.runs.terminal import Stream

PROGRAM = """
import os, signal, sys
from experiments.runs import terminal
def main():
    for i in range(20_000):
        print(i, "gr\u00fcn", flush=i % 100 == 0)
    print("at the end", file=sys.stderr)
    if "interrupted" in sys.argv:
        raise KeyboardInterrupt
    if "unwritable" in sys.argv:
        open("/proc/x/y", "w")
    if "fault" in sys.argv:
        raise OSError("of the program itself")
    if "terminated" in sys.argv:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            print("tidied", file=sys.stderr)
    return 3
terminal.run(main)
"""
ROOT = Path(__file__).parents[3]


def run(redirection, *words, **environment):
    """Exit code and standard error of the program."""
    command = ["sh", "-c", f'"$@" {redirection}', "sh", sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize("redirection", ["> /dev/full", ">&-", "", "| head -n 1 >&2"])
def test_a_command_comes_to_its_end_whoever_reads_it(redirection):
    code, said = run(redirection, PYTHONIOENCODING="ascii")
    assert code == (0 if "head" in redirection else 3)  # of a pipeline, its last command's
    assert "at the end" in said and "Traceback" not in said and "Exception ignored" not in said
    assert ("stdout cannot be written any more (No space left on device)" in said) == ("full" in redirection)


def test_a_lost_stderr_is_borne_too_and_ctrl_c_is_a_word():
    assert run("2> /dev/full") == (3, "")
    code, said = run("> /dev/null", "interrupted")
    assert (code, said) == (130, "at the end\ninterrupted\n")


def test_sigterm_ends_it_after_what_must_be_tidied():
    assert run("> /dev/null", "terminated") == (143, "at the end\ntidied\n")


def test_a_file_that_cannot_be_written_is_named_and_a_fault_of_the_program_is_not_hidden():
    assert run("> /dev/null", "unwritable") == (2, "at the end\n/proc/x/y: No such file or directory\n")
    code, said = run("> /dev/null", "fault")
    assert code == 1 and "Traceback" in said and "OSError: of the program itself" in said


def test_a_full_disk_is_a_failure_and_a_reader_that_has_read_enough_is_none(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        stream = Stream("stdout")
        stream.say("lost")
        assert stream.failed
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        stream.say("lost")
        assert not stream.failed


def test_a_stream_that_is_taken_writes_to_what_was_there_until_it_is_lost(monkeypatch):
    class Pipe(io.StringIO):
        encoding = "ascii"
        broken = False

        def write(self, text):
            if self.broken:
                raise BrokenPipeError(32, "Broken pipe")
            text.encode(self.encoding)
            return super().write(text)

    pipe = Pipe()
    monkeypatch.setattr(sys, "stdout", pipe)
    stream = Stream("stdout")
    stream.take()
    assert sys.stdout is stream
    print("gr\u00fcn")
    assert pipe.getvalue() == "gr\\xfcn\n"
    pipe.broken = True
    print("lost")
    pipe.broken = False
    print("given up")
    assert pipe.getvalue() == "gr\\xfcn\n"


def test_what_a_terminal_would_obey_is_written_as_escapes(monkeypatch):
    """A name in a data file, say, that would clear the screen or name the window."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    Stream("stdout").say("found \x1b[2Jx, \x9b1mgr\u00fcn\r\tend", "next")
    assert sys.stdout.getvalue() == "found \\x1b[2Jx, \\x9b1mgr\u00fcn\\r\tend\nnext\n"


def test_every_command_is_run_like_this():
    files = [*(ROOT / "experiments").glob("*.py"), *(ROOT / "experiments").glob("*/__main__.py")]
    commands = [path for path in files if "__main__" in path.read_text()]
    assert len(commands) > 12
    assert [str(path) for path in commands if "terminal.run(main)" not in path.read_text()] == []
