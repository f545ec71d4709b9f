"""Train, but fail on the process that is not the first: python failing.py [options of experiments.train]."""

import sys

from experiments import train
from experiments.processes import launch
from experiments.training import loop

start, iterate = launch.start, loop.Loop._iterate
job = launch.ALONE


def remember(read):
    """Note which process this is."""
    global job
    actual = start(read)
    job = actual[0]
    return actual


def fail(self, iteration, *rest):
    """The fourth iteration fails."""
    if iteration == 3 and job.index == 1:
        raise RuntimeError("something broke")
    return iterate(self, iteration, *rest)


launch.start, loop.Loop._iterate = remember, fail
sys.exit(train.main())
