"""Layer-parallel training of deep residual networks: multigrid over the layers, in JAX."""

from jaxmgrit import adapters
from jaxmgrit.adjoint import adjoint_solve, adjoint_trajectory, layer_gradients
from jaxmgrit.analysis.advise import Advice, advise
from jaxmgrit.analysis.comparison import Comparison, compare
from jaxmgrit.analysis.control import Control
from jaxmgrit.backend.local import Local
from jaxmgrit.backend.mesh import Mesh
from jaxmgrit.backend.mpi import MPI
from jaxmgrit.propagate import propagate
from jaxmgrit.scan import scan
from jaxmgrit.solution import AdjointSolution, CPoints, Solution
from jaxmgrit.solve import solve, trajectory
from jaxmgrit.solvers.mgrit.coarse import all_layers, average, injection, midpoint, picard, same_step, zero_step
from jaxmgrit.solvers.mgrit.solver import MGRIT
from jaxmgrit.solvers.newton.solver import Newton
from jaxmgrit.solvers.result import Result, SolveError, check
from jaxmgrit.solvers.sequential import Sequential
from jaxmgrit.training.common import Common
from jaxmgrit.training.nested import refine
from jaxmgrit.training.one_shot import OneShot
from jaxmgrit.training.penalty import LayerwisePenalty, published_penalty
from jaxmgrit.training.problem import Problem
from jaxmgrit.training.quasi_newton.hessian import BFGS, LBFGS, SteepestDescent
from jaxmgrit.training.quasi_newton.loop import PublishedLoop
from jaxmgrit.training.quasi_newton.outcome import Outcome, PublishedInfo
from jaxmgrit.training.schedules.cycles_then_gradient import CyclesThenGradient
from jaxmgrit.training.schedules.predict_then_sweep import PredictThenSweep
from jaxmgrit.training.snapshot import Snapshot
from jaxmgrit.training.state import Info, Params, TrainState
from jaxmgrit.training.transforms import anticipate, l2_gradient

__version__ = "0.1.0"

__all__ = [
    "BFGS",
    "LBFGS",
    "MGRIT",
    "MPI",
    "AdjointSolution",
    "Advice",
    "CPoints",
    "Common",
    "Comparison",
    "Control",
    "CyclesThenGradient",
    "Info",
    "LayerwisePenalty",
    "Local",
    "Mesh",
    "Newton",
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
    "adapters",
    "adjoint_solve",
    "adjoint_trajectory",
    "advise",
    "all_layers",
    "anticipate",
    "average",
    "check",
    "compare",
    "injection",
    "l2_gradient",
    "layer_gradients",
    "midpoint",
    "picard",
    "propagate",
    "published_penalty",
    "refine",
    "same_step",
    "scan",
    "solve",
    "trajectory",
    "zero_step",
]
