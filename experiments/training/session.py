"""The network that is trained at the moment, with its trainer, programs and state: what changes when a loop decides so.

The state is initialised once: for a new training by `begin`, for one that goes on by `like`, which a checkpoint is read
against, and `restore`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jaxmgrit as jm
from experiments.config.ladder import climbs_by_sweeps, fused_sweeps
from experiments.config.schema import Config
from experiments.errors import ConfigError
from experiments.foundation.functions import references
from experiments.problems import Data
from experiments.training import build, nested
from experiments.training.batches import Batches
from experiments.training.checkpoint import Checkpoint
from experiments.training.course import Course, read_course
from experiments.training.programs import Programs, programs
from experiments.training.records import Row
from jaxmgrit.analysis.control import EXACT, ControlState, Measured
from jaxmgrit.training.trainer import Trainer

REFRESHES = 10  # of warm values that start cold, before they are used
ADAPTATIONS = 2  # of right-hand sides that another number of Picard sweeps has left
TRIAL = 5  # steps after which a new solver is looked at

Setting = tuple[int, float, int]  # network, factor on the learning rate, rung of the ladder of solvers


class Session:
    """A training between its decisions.

    Args:
        config: Of the run.
        data: What is trained on.

    Attributes:
        config: Of the run.
        course: What is remembered besides the state.
        state: The trainer's.
        sweeps: Work of inexact iterations so far, control's included; see `fused_sweeps`.
        serial: Sequential gradients so far, those of comparisons included.
    """

    state: Any

    def __init__(self, config: Config, data: Data) -> None:
        self.config, self._data = config, data
        self.course = Course()
        self.sweeps, self.serial = 0.0, 0
        self._made: dict[Setting, Programs] = {}
        self._fresh: tuple[Setting, Any, jm.Snapshot] | None = None
        self._batches = Batches(config, data)
        self._networks = nested.networks(config)
        self._begun = False
        self._adopt()

    @property
    def network(self) -> Config:
        """The config of the network that is trained."""
        return self._networks[self.course.network]

    @property
    def trainer(self) -> Trainer:
        """The trainer that the course asks for."""
        return self._programs.trainer

    @property
    def last(self) -> int:
        """The last iteration, as far as is known."""
        if self.course.end is not None:
            return self.course.end
        return self.course.begun + sum(one.iterations for one in self._networks[self.course.network :])

    def begin(self, params: jm.Params | None = None) -> None:
        """Make the initial state of the network that is trained.

        Args:
            params: To start from; None: the config's own, and nothing is done where there is a state already.

        Raises:
            ConfigError: Options that the library refuses for this network.
        """
        if params is None and self._begun:
            return
        self.state = build.initial_state(
            self.network, self._data, self.trainer, self._batches, params, iteration=self.course.begun
        )
        self._begun = True
        self._check_functions()

    def _check_functions(self) -> None:
        """Trace an iteration where functions of the user's own take part, so that they fail before anything is done.

        Raises:
            ConfigError: One of them does not fit.
        """
        if names := references(self.config):
            try:
                jax.eval_shape(self._programs.update, self.state, self._batches.at(0))
            except Exception as error:  # a user's program may raise anything
                said = f"{type(error).__name__}: {error}"
                raise ConfigError(f"one of {', '.join(names)} does not fit: {said[:1000]}") from None

    def like(self, values: Any, iteration: int) -> jm.Snapshot:
        """A snapshot like that of a checkpoint.

        Args:
            values: What the checkpoint holds of the loop.
            iteration: Its iteration.

        Raises:
            Refused: It holds what no training leaves.
            ConfigError: Options that the library refuses for this network.
        """
        self.course = read_course(values, self.config, iteration)
        self._adopt()
        # Several checkpoints may be tried, mostly of one setting, and a state is dear.
        if self._fresh is None or self._fresh[0] != self._setting:
            state = build.initial_state(self.network, self._data, self.trainer, self._batches)
            self._fresh = self._setting, state, self.trainer.export(state)
        return self._fresh[2]

    def resume(self, checkpoint: Checkpoint) -> None:
        """Take up a checkpoint that has been read against `like`."""
        self.like(checkpoint.loop, checkpoint.iteration)
        assert self._fresh is not None
        self.state = self.trainer.restore(self._fresh[1], checkpoint.snapshot)
        self._fresh, self._begun = None, True

    def checkpoint(self) -> Checkpoint:
        """What to go on from."""
        return Checkpoint(self.trainer.export(self.state), self.course.to_json())

    def params(self) -> jm.Params:
        """The parameters, as NumPy arrays."""
        return jax.device_get(self.trainer.params(self.state))

    def update(self, iteration: int) -> Any:
        """One iteration; its info, on the host."""
        self.state, info = self._programs.update(self.state, self._batches.at(iteration))
        self._count(1)
        # Waits for the device, as the clock of the loop must.
        return jax.device_get(info)

    def evaluate(self, at_end: bool, asked: Callable[[], int]) -> Row:
        """The exact losses and accuracies, as a part of a row.

        Args:
            at_end: On all points, rather than as many as the config says.
            asked: Whether to stop, see `experiments.training.evaluation.evaluator`.

        Raises:
            EvaluationStopped: It was asked to.
        """
        row: Row = {}
        for name, evaluate in self._programs.exact[at_end].items():
            loss, accuracy = evaluate(self.state, asked)
            row |= {f"exact_{name}_loss": loss, f"exact_{name}_accuracy": accuracy}
        return row

    def measure(self, iteration: int, cycles: int | None) -> Measured:
        """Compare the gradients of an iteration; where a solver is new, after a few steps, which are taken back."""
        if cycles is None:
            return EXACT
        self._count(2)  # of the gradient, and of how the residual falls
        self.serial += 1
        if self.course.control.since < iteration:
            return Measured(*map(float, self._programs.compare(self.state, self._batches.at(iteration))))
        # Kept beside, since trial iterations use up the state they are given.
        snapshot = self.trainer.export(self.state)
        for i in range(TRIAL):
            self.state, _ = self._programs.update(self.state, self._batches.at(iteration + i))
        self._count(TRIAL)
        measured = self._programs.compare(self.state, self._batches.at(iteration + TRIAL))
        self.state = self.trainer.restore(self.state, snapshot)
        return Measured(*map(float, measured))

    def refine(self, iteration: int) -> None:
        """Go on with the next network of a nested training, from the parameters of this one."""
        section = self.config.nested
        params = jm.refine(self.trainer.params(self.state), section.factor, section.prolongation)
        self.course = dataclasses.replace(
            self.course,
            network=self.course.network + 1,
            begun=iteration,
            end=None,
            failed_searches=0,
            diverging=0,
            control=ControlState(check=iteration, since=iteration),
        )
        # Frees the programs of the shallower network; a step back to it would make them again.
        self._made.clear()
        self._adopt()
        self.begin(params)

    def change(self, course: Course, snapshot: jm.Snapshot | None = None) -> None:
        """Take up a state under the trainer that a course asks for, whichever trainer it comes from.

        Args:
            course: From now on.
            snapshot: The state; None: the present one.
        """
        snapshot = self.trainer.export(self.state) if snapshot is None else snapshot
        self.course, before = course, self._programs
        self._adopt()
        fresh = self.trainer.init(snapshot.params, self._batches.first())
        cold = self.trainer.export(fresh).warm
        own: Any = jax.tree.structure(cold)
        kept = bool(own == jax.tree.structure(snapshot.warm))
        # Warm values of another solver may have no place in this one: then they start cold.
        self.state = self.trainer.restore(fresh, snapshot if kept else snapshot._replace(warm=cold))
        if self._batches.warm and jax.tree.leaves(cold):
            batch = self._batches.at(int(snapshot.iteration))
            swept_otherwise = climbs_by_sweeps(self.network) and self._programs is not before
            for _ in range(REFRESHES if not kept else ADAPTATIONS if swept_otherwise else 0):
                self.state = self._programs.refresh(self.state, batch)
                self._count(1)

    def points(self, iteration: int) -> tuple[Any, Any]:
        """What an iteration trains on."""
        points: tuple[Any, Any] = self._batches.at(iteration).points
        return points

    def _count(self, iterations: int) -> None:
        self.sweeps += iterations * self._work
        self.serial += iterations if self._work == 0 else 0

    @property
    def _setting(self) -> Setting:
        return self.course.network, self.course.rate, self.course.control.rung

    def _adopt(self) -> None:
        """Make the programs that the course asks for, unless they have been made before."""
        if self._setting not in self._made:
            _, rate, rung = self._setting
            trainer = build.trainer(self.network, rate, rung)
            self._made[self._setting] = programs(self.config, self._data, trainer, self._batches)
        self._programs = self._made[self._setting]
        self._work = fused_sweeps(self.network, self.course.control.rung)


def is_finite(snapshot: jm.Snapshot) -> bool:
    """Whether all of a state's numbers are finite."""
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(snapshot) if leaf.dtype.kind in "fc")
