"""What each of two ranks runs: optimisers of several kinds against optax alone, and shared parameters with dropout."""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
warnings.simplefilter("ignore")

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_platforms", "cpu")

from helpers import networks as nets
from helpers import optimizers as opts
from training import test_common as common

import jaxmgrit as jm

KINDS = ["adafactor", "lbfgs of as many pairs as slots"]


def main():
    ranks, alone, steps = jm.MPI(), jm.Local(), 3
    for name in KINDS:
        expected = opts.plainly(opts.OPTIMIZERS[name](), steps)
        found = opts.by_one_shot(opts.OPTIMIZERS[name](), (ranks, 1), (alone, 1), (ranks, 1))
        assert opts.distance(found, expected) < 1e-6, name
    expected = common.conventionally(common.PARAMS, common.CONTEXT, common.KEYS)
    trainer, state = common.trained(
        common.one_shot(jm.MGRIT(2, cycles=6), ranks), common.PARAMS, common.CONTEXT, common.KEYS
    )
    assert nets.distance(trainer.params(state), expected) < 1e-10
    print(f"rank {ranks.comm.Get_rank()}: {len(KINDS)} optimisers and what is shared")


main()
