"""The training loop: iterations, exact evaluations, checkpoints, and a step back where training goes wrong."""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

import jaxmgrit as jm
from experiments.config.schema import Config
from experiments.errors import Interrupted, TrainingStopped
from experiments.problems import Data
from experiments.processes.interruption import Interruption
from experiments.runs.checkpoints import Checkpoint
from experiments.training import build, nested
from experiments.training.batches import Batches
from experiments.training.controller import KEPT, Controller
from experiments.training.evaluation import Evaluator, evaluator
from jaxmgrit.analysis.control import EXACT, ControlState, Measured, observe

FAILED_SEARCHES = 5  # iterations in a row; the states get better meanwhile
REFRESHES = 10  # of warm values that start cold, before they are used
TRIAL = 5  # steps after which a new solver is looked at
PATIENCE = 20  # iterations in a row in which the solver may diverge; a few do no harm

Row = dict[str, Any]


class Listener(Protocol):
    """What becomes of what the loop has to tell."""

    def row(self, row: Row) -> None:
        """A row of metrics."""

    def event(self, event: Row) -> None:
        """A decision, and why."""

    def cut(self, rows: int) -> None:
        """Only the first rows of the metrics still hold."""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """A state that is worth going on from."""


class Programs(NamedTuple):
    """A trainer and what it does, each compiled when first used: see `experiments.training.build`.

    Attributes:
        trainer: The trainer.
        update: One iteration.
        compare: How inexact its gradient would be.
        refresh: Better warm values at the same parameters.
        exact: Exact evaluations on the way (False) and at the end (True), by data set.
    """

    trainer: build.Trainer
    update: Callable[[Any, Any], tuple[Any, Any]]
    compare: Callable[[Any, Any], jm.Comparison]
    refresh: Callable[[Any, Any], Any]
    exact: dict[bool, dict[str, Evaluator]]


@dataclass
class Memory:
    """What the loop knows besides the trainer's state; it goes into checkpoints as JSON.

    Attributes:
        seconds: Spent in iterations.
        events: Decisions taken.
        first_loss: The inexact loss of iteration 0.
        diverging: Iterations in a row, up to the last, in which the solver diverged.
        rate: Factor on the learning rate.
        setbacks: Steps back so far.
        failed_searches: Iterations in a row, up to the last, whose line search failed.
        end: The last iteration, where training ends before the config's.
        network: Which of the networks of a nested training is trained, 0 the shallowest.
        begun: The iteration from which it is.
        control: What the control of inexactness remembers.
    """

    seconds: float = 0.0
    events: int = 0
    first_loss: float | None = None
    diverging: int = 0
    rate: float = 1.0
    setbacks: int = 0
    failed_searches: int = 0
    end: int | None = None
    network: int = 0
    begun: int = 0
    control: ControlState = ControlState()

    def __post_init__(self) -> None:
        self.control = ControlState(*self.control)  # JSON has made a list of it


class Loop:
    """A training that is about to run, from its initial state or a checkpoint.

    Row i of the metrics is about the parameters after i updates: what the iteration that starts from them sees
    (inexact) and, every now and then, their exact evaluation. Only the iterations are on the clock. A checkpoint is
    made before the iteration that starts from it and handed on after that one has found nothing wrong.

    Attributes:
        trainer: The current one; a step back changes it.
        state: Its state.
    """

    def __init__(self, config: Config, data: Data) -> None:
        self._config, self._data = config, data
        self._memory = Memory()
        self._made: dict[tuple[int, float, int], Programs] = {}
        self._good: Checkpoint | None = None
        self._batches = Batches(config, data)
        self._networks = nested.networks(config)
        self._control = Controller(config)
        self._adopt()
        self._begin()

    @property
    def _network(self) -> Config:
        """The config of the network that is trained."""
        return self._networks[self._memory.network]

    def _adopt(self) -> None:
        """Make the trainer that the memory asks for, unless it has been made before."""
        memory = self._memory
        setting = memory.network, memory.rate, memory.control.rung
        if setting not in self._made:
            trainer = build.trainer(self._network, memory.rate, memory.control.rung)
            self._made[setting] = Programs(
                trainer,
                build.update(trainer, self._batches),
                build.comparison(trainer, self._batches),
                build.refresh(trainer, self._batches),
                self._evaluators(trainer),
            )
        self._programs = self._made[setting]
        self.trainer = self._programs.trainer

    def _evaluators(self, trainer: build.Trainer) -> dict[bool, dict[str, Evaluator]]:
        """The exact evaluations on the way (False) and at the end (True), by data set."""
        config, parts = self._config, {"train": self._data.train, "validation": self._data.validation}
        return {
            last: {
                name: evaluator(trainer.problem, trainer.evaluate, part, config.dtype, points)
                for name, part in parts.items()
            }
            for last, points in ((False, config.evaluation.points), (True, None))
        }

    def _begin(self, params: jm.Params | None = None) -> None:
        """Make the initial state of the network that is trained."""
        self.state = build.initial_state(
            self._network, self._data, self.trainer, self._batches, params, iteration=self._memory.begun
        )

    @property
    def events(self) -> int:
        """Decisions taken so far."""
        return self._memory.events

    def like(self, loop: dict[str, Any]) -> jm.Snapshot:
        """A snapshot like that of a checkpoint, by what it says of the loop."""
        memory = Memory(**loop)
        network = self._networks[memory.network]
        trainer = build.trainer(network, rung=memory.control.rung)
        return trainer.export(build.initial_state(network, self._data, trainer, self._batches))

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this training."""
        self._memory = Memory(**checkpoint.loop)
        self._go_to(checkpoint.snapshot)
        self._good = checkpoint

    def _go_to(self, snapshot: jm.Snapshot) -> None:
        """Take up a state under the trainer the memory asks for, whichever trainer it comes from."""
        self._adopt()
        fresh = self.trainer.init(snapshot.params, self._batches.first())
        cold = self.trainer.export(fresh).warm
        one: Any = jax.tree.structure(cold)
        kept = bool(one == jax.tree.structure(snapshot.warm))
        self.state = self.trainer.restore(fresh, snapshot if kept else snapshot._replace(warm=cold))
        if not kept and self._batches.warm and jax.tree.leaves(cold):
            batch = self._batches.at(int(snapshot.iteration))
            for _ in range(REFRESHES):
                self.state = self._programs.refresh(self.state, batch)

    def run(self, listener: Listener, interruption: Interruption) -> jm.Params:
        """Train to the last iteration.

        Returns:
            The final parameters as NumPy arrays.

        Raises:
            TrainingStopped: Training went wrong, and steps back did not help.
            Interrupted: A signal asked for it; the checkpoint of this moment has been handed on.
        """
        iteration = self._iteration()
        while True:
            last = iteration == self._last()
            if not last:
                self._watch(iteration, listener)
            evaluation = self._evaluate(last) if last or iteration % self._config.evaluation.every == 0 else {}
            asked = interruption.requested(iteration)
            checkpoint = self._checkpoint(iteration) if last or asked or self._is_due(iteration) else None
            params = jax.device_get(self.trainer.params(self.state)) if last else None
            row = self._iterate(iteration, evaluation, last)
            listener.row(row)
            if trouble := self._trouble(row, checkpoint):
                iteration = self._step_back(row, trouble, listener)
                continue
            if checkpoint:
                self._good = checkpoint
                listener.checkpoint(checkpoint)
            if last:
                assert params is not None
                return params
            if asked:
                raise Interrupted(asked, iteration)
            iteration += 1
            self._note_end(row, listener)
            self._refine(row, iteration, listener)

    def _last(self) -> int:
        """The last iteration, as far as is known."""
        if self._memory.end is not None:
            return self._memory.end
        return self._memory.begun + sum(one.iterations for one in self._networks[self._memory.network :])

    def _refine(self, row: Row, iteration: int, listener: Listener) -> None:
        """Go on with the next network of a nested training, if it is time to."""
        memory = self._memory
        if self._network is self._config:
            return
        ended = "" if memory.end is None else "training it has come to its end"
        reason = ended or nested.reason_to_refine(self._network, iteration - memory.begun, row)
        if not reason:
            return
        section = self._config.nested
        params = jm.refine(self.trainer.params(self.state), section.factor, section.prolongation)
        self._memory = dataclasses.replace(
            memory,
            network=memory.network + 1,
            begun=iteration,
            end=None,
            failed_searches=0,
            diverging=0,
            control=ControlState(check=iteration, since=iteration),
        )
        self._made.clear()
        self._adopt()
        self._begin(params)
        action = f"on to {self._network.network.layers} layers"
        self._decided(listener, {"iteration": iteration, "action": action, "reason": reason})

    def _note_end(self, row: Row, listener: Listener) -> None:
        """End a training of the published loop that has converged, or whose line searches keep failing."""
        memory, outcome = self._memory, jm.Outcome(row.get("outcome", jm.Outcome.STEP))
        memory.failed_searches = memory.failed_searches + 1 if outcome == jm.Outcome.LINE_SEARCH_FAILED else 0
        if outcome == jm.Outcome.CONVERGED or memory.failed_searches >= FAILED_SEARCHES:
            memory.end = row["iteration"] + 1
            times = f"for {FAILED_SEARCHES} iterations: " if memory.failed_searches else ""
            event = {"iteration": row["iteration"], "action": "training ends", "reason": times + outcome.sentence}
            self._decided(listener, event)

    def _iteration(self) -> int:
        return 0 if self._good is None else int(self._good.snapshot.iteration)

    def _is_due(self, iteration: int) -> bool:
        return iteration % self._config.checkpoints.every == 0

    def _checkpoint(self, iteration: int) -> Checkpoint | None:
        """What to go on from, unless that is there already."""
        if self._good is not None and iteration == self._iteration():
            return None
        return Checkpoint(self.trainer.export(self.state), dataclasses.asdict(self._memory))

    def _evaluate(self, last: bool) -> Row:
        found: Row = {}
        for name, evaluate in self._programs.exact[last].items():
            loss, accuracy = evaluate(self.state)
            found |= {f"exact_{name}_loss": loss, f"exact_{name}_accuracy": accuracy}
        return found

    def _iterate(self, iteration: int, evaluation: Row, last: bool) -> Row:
        """One update; the last time it only serves to see what training sees of the final parameters."""
        start = time.perf_counter()
        self.state, info = self._programs.update(self.state, self._batches.at(iteration))
        info = jax.device_get(info)
        self._memory.seconds += 0.0 if last else time.perf_counter() - start
        self._memory.control = observe(self._memory.control, float(info.objective))
        layers = {"layers": self._network.network.layers}
        return {"iteration": iteration, **layers, **_figures(info), **evaluation, "seconds": self._memory.seconds}

    def _trouble(self, row: Row, checkpoint: Checkpoint | None) -> str:
        """What is wrong, if anything: not finite, a loss out of all bounds, a solver that diverges all the time."""
        memory, result = self._memory, jm.Result(row["result"])
        wild = [key for key in ("inexact_loss", "objective", "grad_norm") if not math.isfinite(row[key])]
        if wild:
            return f"{wild[0]} = {row[wild[0]]:.3g}"
        if result == jm.Result.NOT_FINITE or (checkpoint and not _finite(checkpoint.snapshot)):
            return "parameters, states or adjoints are not finite"
        memory.first_loss = row["inexact_loss"] if memory.first_loss is None else memory.first_loss
        if row["inexact_loss"] > self._config.recovery.growth * max(1.0, memory.first_loss):
            return f"inexact_loss = {row['inexact_loss']:.3g}, after {memory.first_loss:.3g} at first"
        memory.diverging = memory.diverging + 1 if result == jm.Result.DIVERGED else 0
        return f"for {PATIENCE} iterations: {result.sentence}" if memory.diverging >= PATIENCE else ""

    def _step_back(self, row: Row, trouble: str, listener: Listener) -> int:
        """Go back to the last good state with a smaller learning rate; its iteration."""
        recovery, memory = self._config.recovery, self._memory
        if self._good is None or memory.setbacks >= recovery.attempts:
            tried = f", after {memory.setbacks} steps back with ever smaller learning rates" if memory.setbacks else ""
            raise TrainingStopped(
                f"iteration {row['iteration']}{tried}: {trouble}. Lower optimizer.learning_rate or network.scale, or "
                "raise solver.cycles; --training.method sequential tells whether the network itself overflows."
            )
        rung = min(memory.control.rung + 1, len(self._control.cycles) - 1)
        self._memory = dataclasses.replace(
            Memory(**self._good.loop),
            seconds=memory.seconds,
            events=memory.events,
            rate=memory.rate * recovery.rate_factor,
            setbacks=memory.setbacks + 1,
            control=ControlState(rung, check=self._iteration(), since=self._iteration()),
        )
        self._go_to(self._good.snapshot)
        listener.cut(self._iteration())
        careful = f", {self._control.name(rung)}" if rung != memory.control.rung else ""
        action = f"back to iteration {self._iteration()}, learning rate x {self._memory.rate:g}{careful}"
        self._decided(listener, {"iteration": row["iteration"], "action": action, "reason": trouble})
        return self._iteration()

    def _watch(self, iteration: int, listener: Listener) -> None:
        """Compare the gradient with the exact one where that is due, and change the solver where it must be."""
        start, memory = time.perf_counter(), self._memory
        while self._control.is_due(memory.control, iteration):
            measured = self._measure(iteration)
            event, memory.control = self._control.decide(memory.control, iteration, measured)
            if event["action"] != KEPT:
                self._go_to(self.trainer.export(self.state))
            if event["action"] != KEPT or measured != EXACT:
                self._decided(listener, event)
        memory.seconds += time.perf_counter() - start

    def _measure(self, iteration: int) -> Measured:
        """Compare the gradients of an iteration; where a solver is new, after a few steps, which are taken back."""
        control = self._memory.control
        if self._control.cycles[control.rung] is None:
            return EXACT
        if control.since < iteration:
            return Measured(*map(float, self._programs.compare(self.state, self._batches.at(iteration))))
        snapshot = self.trainer.export(self.state)
        for i in range(TRIAL):
            self.state, _ = self._programs.update(self.state, self._batches.at(iteration + i))
        measured = self._programs.compare(self.state, self._batches.at(iteration + TRIAL))
        self.state = self.trainer.restore(self.state, snapshot)
        return Measured(*map(float, measured))

    def _decided(self, listener: Listener, event: Row) -> None:
        self._memory.events += 1
        listener.event(event)


def _figures(info: Any) -> Row:
    """An iteration's info as a row of metrics; the published loop's tells of its line search too."""
    search: Row = {}
    if isinstance(info, jm.PublishedInfo):
        search = {"step_size": float(info.step_size), "trials": int(info.trials), "outcome": int(info.outcome)}
    return {
        "inexact_loss": float(info.loss),
        "inexact_accuracy": float(info.aux["accuracy"]),
        "objective": float(info.objective),
        "grad_norm": float(info.grad_norm),
        "residual_norm": float(info.residual_norm),
        "adjoint_residual_norm": float(info.adjoint_residual_norm),
        "result": int(info.result),
        **search,
    }


def _finite(snapshot: jm.Snapshot) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(snapshot) if leaf.dtype.kind in "fc")
