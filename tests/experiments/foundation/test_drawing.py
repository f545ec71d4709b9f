"""Drawing needs no screen and no backend: what a notebook leaves in the environment does no harm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMMANDS = ("train", "evaluate", "convergence", "scaling", "time_to_accuracy", "benchmark", "plan")
DRAW = "from experiments.foundation.drawing import Figure; f = Figure(); f.subplots().plot([1, 2]); f.savefig({!r})"


def python(*words, backend):
    environment = {**os.environ, "MPLBACKEND": backend}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.nowhere", "TkAgg", "nonsense", ""])
def test_figures_are_drawn_under_any_backend(tmp_path, backend):
    done = python("-c", DRAW.format(str(tmp_path / "x.png")), backend=backend)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").stat().st_size > 1000


@pytest.mark.slow
def test_commands_start_without_matplotlib():
    imports = "; ".join(f"import experiments.{name}" for name in COMMANDS)
    check = "import sys; assert not [m for m in sys.modules if m.startswith('matplotlib')]"
    done = python("-c", f"{imports}; {check}", backend="module://matplotlib_inline.nowhere")
    assert done.returncode == 0, done.stderr
    assert python("-m", "experiments.train", "--help", backend="nonsense").returncode == 0
