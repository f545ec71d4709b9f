"""Programs of others: the documented example speaks the protocol, and every way to break it is told in time."""

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.peers.program import Peer, PeerError
from experiments.timing.contenders import Case

PAGE = Path(__file__).parents[3] / "docs" / "guides" / "peers.md"
CASE = Case(4, 2, 3, "float32", 2)


def command(text):
    """A peer that is this Python text."""
    return shlex.join([sys.executable, "-c", text])


def test_the_example_of_the_page_runs_and_its_gradient_is_that_of_differences():
    example = re.search(r"^```py\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE).group(1)
    peer = Peer(command(example), CASE)
    try:
        start = time.perf_counter()
        seconds = [peer.run() for _ in range(3)]
        assert 0 < sum(seconds) <= time.perf_counter() - start
    finally:
        peer.close()
    check = (
        "\nvalue, e = lambda: float(np.mean(last() ** 2)), 1e-6\n"
        "def last():\n    u = x\n    for w, c in zip(W, b): u = u + h * np.tanh(u @ w + c)\n    return u\n"
        "W[1, 0, 1] += e; up = value(); W[1, 0, 1] -= 2 * e; down = value(); W[1, 0, 1] += e\n"
        "print(abs((up - down) / (2 * e) - gradient()[::-1][1][0][0, 1]) < 1e-8)\n"
    )
    case = '{"layers": 4, "width": 2, "batch": 3, "dtype": "float64", "step_size": 0.5}\n'
    done = subprocess.run([sys.executable, "-c", example + check], input=case, capture_output=True, text=True)
    assert done.stdout.split() == ["ready", "True"], done


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("print('hello')", "answered 'hello' to the case, expected 'ready'"),
        ("raise SystemExit(3)", "has ended"),
        pytest.param("import time; time.sleep(60)", "has not answered .* within 2 s", marks=pytest.mark.slow),
        ("print('ready', flush=True); input(); input(); print('fast')", "answered 'fast' to 'run', expected seconds"),
        ("print('ready', flush=True); input(); input(); print(-1)", "answered '-1' to 'run'"),
        ("print('ready', flush=True); input(); input()", "without an answer to 'run'"),
    ],
)
def test_whatever_breaks_the_protocol_is_told_in_time(text, match):
    start = time.monotonic()
    with pytest.raises(PeerError, match=match):
        peer = Peer(command(text), CASE, waits=(2.0, 2.0))
        try:
            peer.run()
        finally:
            peer.close()
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("words", ["no-such-program-here", "'open quote", ""])
def test_a_command_that_cannot_be_started_is_named(words):
    with pytest.raises(PeerError, match="cannot be started"):
        Peer(words, CASE)
