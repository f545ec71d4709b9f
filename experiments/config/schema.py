"""What a config may say: one typed section per topic, with ranges; problems, networks and solvers bring their own.

How keys must fit together is in `experiments.config.rules`; reading files and command lines, and what is said about a
wrong value, in `experiments.config.reader`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from experiments.config.solver import Solver
from experiments.foundation.functions import Function
from experiments.foundation.section import Count, Factor, FolderName, NonNegative, Section
from experiments.networks.residual import Network, Penalty
from experiments.problems.file import File, Own
from experiments.problems.indian_pines import IndianPines
from experiments.problems.level_sets import LevelSets
from experiments.problems.mnist import Mnist
from experiments.problems.text import Text


class Optimizer(Section):
    """What turns gradients into updates: optax's Adam or SGD, or the published quasi-Newton loop with line search."""

    name: Literal["adam", "sgd", "published"] = Field(
        default="adam", description="published: Hessian approximation and Armijo line search, on all points at once"
    )
    learning_rate: float = Field(default=1e-2, gt=0, description="of adam and sgd: largest step size")
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="of adam and sgd: cosine decays to zero at the last iteration"
    )
    warmup: int = Field(
        default=0, ge=0, description="of adam and sgd: iterations over which the learning rate rises linearly from zero"
    )
    anticipate: float = Field(
        default=0.0, ge=0, description="of adam and sgd: alpha of g + alpha (g - g_prev); 0 is the plain gradient"
    )
    hessian: Literal["identity", "l-bfgs", "bfgs"] = Field(
        default="l-bfgs", description="of published: approximation of the inverse Hessian; bfgs is dense"
    )
    memory: int = Field(default=20, ge=1, le=1000, description="of published: pairs that l-bfgs keeps")
    initial_step: float = Field(default=1.0, gt=0, description="of published: step size of the first trial")
    ls_max: int = Field(
        default=20, ge=1, le=100, description="of published: trials of a line search, each half as long"
    )
    c1: float = Field(default=1e-4, gt=0, lt=1, description="of published: of the Armijo condition")
    gtol: NonNegative = Field(default=0.0, description="of published: training ends where the gradient's norm is below")


class Training(Section):
    """One-shot (layer-parallel, inexact) or sequential (conventional) training."""

    method: Literal["one_shot", "sequential"] = Field(
        default="one_shot", description="sequential: exact states and gradients"
    )
    schedule: Literal["cycles_then_gradient", "predict_then_sweep"] = Field(
        default="cycles_then_gradient", description="what one one-shot iteration does"
    )
    mesh_independent: bool = Field(
        default=False,
        description="penalties and gradients in the inner product of L2(0, T): a config behaves alike at any depth",
    )
    batch_size: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="training points in a mini-batch; null: all of them, every iteration"
    )
    start: Literal["warm", "cold"] = Field(
        default="warm",
        description="start solves from the same points' values when last seen (kept for all points), or anew",
    )
    moving_average: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="of predict_then_sweep from cold starts: weight of the past in what predictions miss on average, "
        "0.8 say; null: predict without it",
    )
    loss: Literal["cross_entropy", "squared_error"] | Function = Field(
        default="cross_entropy",
        description="of a network's outputs, or a function's: (outputs, y) -> scalar; with problem.targets "
        "squared_error by default",
    )


class Nested(Section):
    """Nested iteration: shallower networks are trained first, and each initialises the next, `factor` times as deep."""

    networks: int = Field(default=1, ge=1, le=20, description="how many networks, the one of network.layers counted")
    factor: Factor = Field(default=4, description="how much deeper the next one is; the final time is the same")
    prolongation: Literal["linear", "constant"] = Field(
        default="linear", description="of the layers' parameters, from one network to the next"
    )
    iterations: Annotated[int, Field(ge=1)] | Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = Field(
        default=200, description="of each shallower network, at most; one for all or one per network"
    )
    loss: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="go on to the next network where the inexact loss is not above"
    )
    gradient: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="go on to the next network where the gradient's norm is not above"
    )


class Backend(Section):
    """Where the layers live."""

    kind: Literal["local", "mesh", "mpi"] | None = Field(
        default=None,
        description="one device, all layers sharded over a mesh of devices, MPI ranks; null: as devices says",
    )
    devices: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None,
        description="devices of the mesh, in each process; on a CPU as many are made; null: those there are",
    )
    data: int = Field(
        default=1, ge=1, le=4096, description="parts of the batch; the devices or ranks make a grid of data x layers"
    )
    coordinator: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="connect processes by jax.distributed: detect (SLURM, Open MPI), mpi4py, or HOST:PORT of process 0",
    )
    processes: Annotated[int, Field(ge=1, le=65_536)] | None = Field(
        default=None, description="how many processes, with a coordinator given as HOST:PORT"
    )
    process: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="which of them this is, 0 .. processes - 1, with a coordinator given as HOST:PORT"
    )
    patience: Annotated[float, Field(ge=1, le=10**6)] | None = Field(
        default=None,
        description="seconds after which a process that is stopped or silent is given up and the run ended; null: MPI "
        "waits for it and says so, jax.distributed gives it up after 20",
    )


class Evaluation(Section):
    """The exact evaluation of the network, beside what training sees."""

    every: int = Field(default=50, ge=1, description="iterations between exact evaluations; first and last always are")
    early: bool = Field(
        default=False, description="also after 1, 2, 5, 10, 20, ... iterations, until `every`: how training begins"
    )
    gradient: bool = Field(
        default=False,
        description="with each, how far the gradient in use is from the exact one: two steps and an exact gradient",
    )
    points: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="points of either set evaluated on the way, at most; null: all"
    )
    points_at_end: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="points of either set evaluated at the end, at most; null: all"
    )


class Checkpoints(Section):
    """States of the training on disk, to go on from with --resume after whatever has happened."""

    every: int = Field(default=100, ge=1, description="iterations between checkpoints")
    keep: int = Field(default=3, ge=1, description="so many of the latest are kept")


class Control(Section):
    """How inexact gradients are: more cycles or Picard sweeps, or sequential ones, where it hurts; and back."""

    active: bool = Field(default=False, description="compare with the exact gradient now and then, and act on it")
    tolerance: float = Field(
        default=0.05, gt=0, description="relative distance of the inexact from the exact gradient that is borne"
    )
    min_cosine: float = Field(default=0.9, gt=0, lt=1, description="of the angle between them that is borne")
    most_cycles: int = Field(
        default=4, ge=1, le=1000, description="tried before sequential sweeps; of picard, behind 4 sweeps"
    )
    soon: int = Field(default=10, ge=1, description="iterations to the next comparison after a change")
    longest: int = Field(default=400, ge=1, description="iterations between comparisons while all is well")


class Recovery(Section):
    """What happens when a loss, gradient or state is not finite, or the loss leaves all bounds: a step back."""

    attempts: Count = Field(default=3, description="steps back to the last good checkpoint before training stops")
    rate_factor: float = Field(default=0.5, gt=0, lt=1, description="on the learning rate at every step back")
    growth: float = Field(default=1e3, gt=1, description="of the loss over its first value (or 1) is out of bounds")


class Output(Section):
    """What a run leaves behind."""

    folder: FolderName | None = Field(default=None, description="new folder; null: runs/NAME-TIME")
    pictures: bool = Field(default=True, description="draw the pictures at the end")
    quiet: bool = Field(default=False, description="print only what is wrong, and how it ends")
    gaps: bool = Field(default=False, description="with --resume: go on though rows of the metrics are missing")


ProblemSection = Annotated[
    LevelSets | IndianPines | Mnist | Text | File | Own,
    Field(discriminator="name", description="What is trained on."),
]


class Config(Section):
    """A whole experiment."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        default="run", description="names the run's folder"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the data's choice and the initial parameters")
    dtype: Literal["float32", "float64"] = Field(default="float32", description="of data, parameters and states")
    iterations: int = Field(default=1000, ge=1, le=10**9, description="optimiser updates")
    problem: ProblemSection
    # Sections are frozen, so one instance can be everybody's default.
    network: Network = Network()
    optimizer: Optimizer = Optimizer()
    training: Training = Training()
    solver: Solver = Field(default=Solver(), description="Multigrid over the layers, of the states.")
    adjoint: Solver = Field(default=Solver(), description="Of the adjoint; what is not given here is as in `solver`.")
    nested: Nested = Nested()
    penalty: Penalty = Penalty()
    backend: Backend = Backend()
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    control: Control = Control()
    recovery: Recovery = Recovery()
    output: Output = Output()

    @model_validator(mode="after")
    def _complete(self) -> "Config":
        """Fill in what follows from other keys."""
        # The keys that were set, not those that differ: one set to its default still overrides the solver's.
        given = {key: getattr(self.adjoint, key) for key in self.adjoint.model_fields_set}
        _set(self, "adjoint", self.solver.model_copy(update=given))
        if getattr(self.problem, "targets", None) and "loss" not in self.training.model_fields_set:
            _set(self, "training", self.training.model_copy(update={"loss": "squared_error"}))
        # With a coordinator there are other processes, whose devices belong to the mesh too.
        several = self.backend.devices not in (None, 1) or self.backend.data > 1 or self.backend.coordinator
        kind = self.backend.kind or ("mesh" if several else "local")
        _set(self, "backend", self.backend.model_copy(update={"kind": kind}))
        return self


def _set(model: BaseModel, key: str, value: Any) -> None:
    """Set a key of a frozen model while it is being validated."""
    object.__setattr__(model, key, value)
