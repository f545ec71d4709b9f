"""The SLURM batch script: linted, and run with stand-ins for SLURM's commands."""

import os
import re
import signal
import stat
import subprocess
import time
from pathlib import Path
from shutil import which

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "slurm" / "train.sbatch"

SRUN = """#!/bin/bash
echo "srun $*" >> calls
trap 'echo "step ended by TERM" >> calls; exit 143' TERM
echo $$ > step
touch started
for _ in $(seq "${STEP_TICKS:-0}"); do sleep 0.05; done
exit "${STEP_CODE:-0}"
"""
SCANCEL = '#!/bin/bash\necho "scancel $*" >> calls\nkill -TERM "$(cat step)"\n'
SCONTROL = '#!/bin/bash\necho "scontrol $*" >> calls\n'


@pytest.fixture
def start(tmp_path):
    """Start the script in an empty folder, where `srun`, `scancel` and `scontrol` write down how they are called."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(stat.S_IRWXU)

    def begin(*words, **environment):
        env = os.environ | {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "SLURM_ARRAY_TASK_ID": "3",
            "SLURM_JOB_ID": "77",
        }
        return subprocess.Popen(["bash", str(SCRIPT), *words], cwd=tmp_path, env=env | environment)

    begin.calls = lambda: (tmp_path / "calls").read_text().splitlines()
    begin.folder = tmp_path
    return begin


def test_it_is_bash_and_has_no_lint():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    if which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", str(SCRIPT)], check=True)


def test_it_asks_slurm_for_an_array_a_signal_and_requeueing():
    asked = re.findall(r"^#SBATCH (.*)$", SCRIPT.read_text(), re.MULTILINE)
    for option in ("--array=0-4", "--requeue", "--signal=B:USR1@300", "--open-mode=append"):
        assert option in asked


def test_a_training_that_is_done_does_not_queue_again(start):
    assert start("configs/level_sets.yaml", "--iterations", "5").wait(20) == 0
    assert start.calls() == [
        "srun python -m experiments.train configs/level_sets.yaml --seed 3 --iterations 5 --resume auto "
        "--output.folder runs/level_sets-seed-3 --backend.coordinator detect"
    ]


def test_a_second_start_is_the_same_command(start):
    assert start("configs/level_sets.yaml").wait(20) == start("configs/level_sets.yaml").wait(20) == 0
    first, second = start.calls()
    assert first == second and "--resume auto --output.folder runs/level_sets-seed-3" in first


def test_a_training_that_goes_wrong_does_not_queue_again(start):
    assert start("configs/level_sets.yaml", STEP_CODE="2").wait(20) == 2
    assert len(start.calls()) == 1


def test_before_the_time_is_up_it_ends_the_training_and_queues_again(start):
    job = start("configs/level_sets.yaml", STEP_TICKS="400")
    until = time.monotonic() + 20
    while not (start.folder / "started").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == 143
    assert start.calls()[1:] == ["scancel --signal=TERM 77", "step ended by TERM", "scontrol requeue 77"]
