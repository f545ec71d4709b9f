"""Layer-parallel training of deep residual networks: multigrid over the layers, in JAX."""

from jaxmgrit.adjoint import adjoint_solve, adjoint_trajectory, layer_gradients
from jaxmgrit.backend.local import Local
from jaxmgrit.backend.mesh import Mesh
from jaxmgrit.backend.mpi import MPI
from jaxmgrit.coarsen import average, injection, midpoint, same_step
from jaxmgrit.comparison import Comparison, compare
from jaxmgrit.control import Control
from jaxmgrit.one_shot import Info, OneShot, TrainState
from jaxmgrit.optimizers import anticipate, l2_gradient
from jaxmgrit.options import MGRIT, Sequential
from jaxmgrit.penalty import LayerwisePenalty, published_penalty
from jaxmgrit.predict_then_sweep import PredictThenSweep
from jaxmgrit.problem import Params, Problem
from jaxmgrit.propagate import propagate
from jaxmgrit.published import Outcome, PublishedInfo, PublishedLoop
from jaxmgrit.quasi_newton import BFGS, LBFGS, SteepestDescent
from jaxmgrit.refine import refine
from jaxmgrit.schedule import CyclesThenGradient
from jaxmgrit.snapshot import Snapshot
from jaxmgrit.solution import AdjointSolution, CPoints, Result, Solution, SolveError, check
from jaxmgrit.solve import solve, trajectory

__all__ = [
    "BFGS",
    "LBFGS",
    "MGRIT",
    "MPI",
    "AdjointSolution",
    "CPoints",
    "Comparison",
    "Control",
    "CyclesThenGradient",
    "Info",
    "LayerwisePenalty",
    "Local",
    "Mesh",
    "OneShot",
    "Outcome",
    "Params",
    "PredictThenSweep",
    "Problem",
    "PublishedInfo",
    "PublishedLoop",
    "Result",
    "Sequential",
    "Snapshot",
    "Solution",
    "SolveError",
    "SteepestDescent",
    "TrainState",
    "adjoint_solve",
    "adjoint_trajectory",
    "anticipate",
    "average",
    "check",
    "compare",
    "injection",
    "l2_gradient",
    "layer_gradients",
    "midpoint",
    "propagate",
    "published_penalty",
    "refine",
    "same_step",
    "solve",
    "trajectory",
]
