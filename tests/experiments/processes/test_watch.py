"""A process that is stopped is named, waited for or ended; one that is killed is reported, one that ends well not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys, time
from experiments.processes.watch import Watch
with Watch({token!r}, "rank 1 of 2", {patience}, report=0.5) as watch:
    watch.remedy("Go on with --resume RUN.")
    print("watched", flush=True)
    sys.stdin.read()
"""


SENTENCE = "Go on with --resume 'a\nrun of\udce9'."
LOST = f"""
import os, sys
os.environ["PMI_FD"] = "999"  # of a launcher long gone
from experiments.processes.watch import Watch
with Watch("{{token}}", "rank 0 of 2") as watch:
    watch.remedy({SENTENCE!r})
    if "{{how}}" == "killed":
        os._exit(9)
    watch._companion.kill()
    watch._companion.wait()
    watch.remedy("Something else.")
print("done")
"""


@pytest.mark.parametrize("how", ["killed", "its companion"])
def test_neither_names_of_folders_nor_a_lost_companion_disturb_it(how, tmp_path):
    """What is said stays one line of bytes, and a companion that was killed costs nothing but itself."""
    program = LOST.format(token=f"{tmp_path.name}-{os.getpid()}", how=how)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True)
    if how == "killed":
        assert done.returncode == 9
        assert done.stderr.endswith(b"from the others. Go on with --resume 'a run of\xe9'.\n")
    else:
        assert (done.returncode, done.stdout, done.stderr) == (0, b"done\n", b"")


@pytest.fixture
def watched(tmp_path):
    """Start a watched process; ends it at last."""
    started = []

    def start(patience=None):
        program = PROGRAM.format(token=f"{tmp_path.name}-{len(started)}-{os.getpid()}", patience=patience)
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen(
                [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
            )
        started.append(process)
        assert process.stdout.readline() == b"watched\n"
        return process

    yield start, tmp_path / "said"
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def wait_for(text, file):
    end = time.monotonic() + 30
    while text not in file.read_text():
        assert time.monotonic() < end, file.read_text()
        time.sleep(0.05)


def test_a_stopped_process_is_named_and_may_go_on(watched):
    start, said = watched
    process = start()
    process.send_signal(signal.SIGSTOP)
    who = f"rank 1 of 2 (PID {process.pid} on {os.uname().nodename})"
    wait_for(f"{who} is stopped (by SIGSTOP or a debugger), and the others wait for it. They wait on", said)
    assert f"kill -CONT {process.pid}" in said.read_text()
    process.send_signal(signal.SIGCONT)
    wait_for(f"{who} goes on.", said)
    process.stdin.close()
    assert process.wait(30) == 0
    time.sleep(0.2)
    assert "was lost" not in said.read_text()


@pytest.mark.slow
def test_patience_ends_a_stopped_process_with_a_word_on_how_to_go_on(watched):
    start, said = watched
    process = start(patience=1.0)
    process.send_signal(signal.SIGSTOP)
    assert process.wait(30) == -signal.SIGKILL
    wait_for("was lost: killed from outside, crashed, or cut off from the others. Go on with --resume RUN.", said)
    assert "has been stopped for 1 s (backend.patience) and is ended." in said.read_text()


def test_a_killed_process_is_reported(watched):
    start, said = watched
    start().kill()
    wait_for("was lost: killed from outside, crashed, or cut off from the others. Go on with --resume RUN.", said)
