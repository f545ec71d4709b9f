"""The training loop: iterations, and between them what is decided about them."""

import time
from typing import Any

import jaxmgrit as jm
from experiments.config.schema import Config
from experiments.errors import Interrupted
from experiments.problems import Data
from experiments.processes.interruption import Interruption
from experiments.training import nested
from experiments.training.checkpoint import Checkpoint
from experiments.training.controller import Controller
from experiments.training.course import FAILED_SEARCHES
from experiments.training.evaluation import EvaluationStopped, is_due
from experiments.training.records import Gap, Listener, Row, figures
from experiments.training.recovery import stepped_back, trouble
from experiments.training.session import Session, is_finite
from jaxmgrit.training.trainer import Trainer


class Loop:
    """A training that is about to run, from its initial state or a checkpoint.

    Row i of the metrics is about the parameters after i updates: what the iteration that starts from them sees
    (inexact) and, every now and then, their exact evaluation. Only the iterations are on the clock. A checkpoint is
    made before the iteration that starts from it and handed on after that one has found nothing wrong.

    Args:
        config: Of the run.
        data: What is trained on.
    """

    def __init__(self, config: Config, data: Data) -> None:
        self._config = config
        self._session = Session(config, data)
        self._control = Controller(config)
        self._good: Checkpoint | None = None
        self._gap = Gap(config.training.batch_size, min(len(data.train.y), config.evaluation.points or 2**62))

    @property
    def trainer(self) -> Trainer:
        """The current one; decisions change it."""
        return self._session.trainer

    @property
    def state(self) -> Any:
        """The trainer's state."""
        return self._session.state

    @property
    def events(self) -> int:
        """Decisions taken so far."""
        return self._session.course.events

    @property
    def iteration(self) -> int:
        """Of the last good checkpoint; 0 before there is one."""
        return 0 if self._good is None else self._good.iteration

    @property
    def last(self) -> int:
        """The last iteration, as far as is known."""
        return self._session.last

    def start(self) -> None:
        """Make the initial state of a new training, unless there is a state.

        Raises:
            ConfigError: Options that the library refuses for this network.
        """
        self._session.begin()

    def like(self, loop: Any, iteration: int) -> jm.Snapshot:
        """A snapshot like that of a checkpoint, by what it holds of the loop; see `Session.like`."""
        return self._session.like(loop, iteration)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this training, read against `like`."""
        self._session.resume(checkpoint)
        self._good = checkpoint

    def note(self, event: Row, listener: Listener) -> None:
        """Hand on a decision that was taken elsewhere."""
        self._decided(listener, event)

    def run(self, listener: Listener, interruption: Interruption) -> jm.Params:
        """Train to the last iteration.

        Returns:
            The final parameters as NumPy arrays.

        Raises:
            TrainingStopped: Training went wrong, and steps back did not help.
            Interrupted: A signal asked for it; the checkpoint of this moment has been handed on.
        """
        self.start()
        iteration = self.iteration
        while True:
            at_end = iteration == self._session.last
            asked = interruption.requested()
            if not (at_end or asked):
                self._watch(iteration, listener)
            evaluation: Row = {}
            if not asked:
                asked, evaluation = self._evaluate(iteration, at_end, interruption)
            due = at_end or asked or iteration % self._config.checkpoints.every == 0
            # Both before the iteration, which uses up the state.
            checkpoint = self._session.checkpoint() if due and not self._is_good(iteration) else None
            params = self._session.params() if at_end and not asked else None
            row = self._iterate(iteration, evaluation, at_end)
            # Written even where it is wrong: a step back cuts it off again, and where training stops it tells why.
            listener.row(row)
            if lie := self._gap.sentence(row):
                self._decided(listener, {"iteration": iteration, "action": "warning", "reason": lie})
            if reason := self._trouble(row, checkpoint):
                iteration = self._step_back(row, reason, listener)
                continue
            if checkpoint:
                self._good = checkpoint
                listener.checkpoint(checkpoint)
            if asked:
                raise Interrupted(asked, iteration)
            if params is not None:
                return params
            iteration += 1
            self._note_end(row, listener)
            self._refine(row, iteration, listener)

    def _is_good(self, iteration: int) -> bool:
        """Whether the last good checkpoint is that of an iteration."""
        return self._good is not None and self._good.iteration == iteration

    def _evaluate(self, iteration: int, at_end: bool, interruption: Interruption) -> tuple[int, Row]:
        """The exact evaluation where one is due; or the signal that has interrupted it."""
        if not at_end and not is_due(self._config.evaluation, iteration):
            return 0, {}
        try:
            return 0, self._session.evaluate(at_end, interruption.requested) | self._compare(iteration)
        except EvaluationStopped as stopped:
            return stopped.signal, {}

    def _compare(self, iteration: int) -> Row:
        """How far the gradient in use is from the exact one, as a part of a row, where the config asks for it."""
        # Before the first iteration there are no warm values to judge.
        if not self._config.evaluation.gradient or iteration == 0 or not isinstance(self.trainer, jm.OneShot):
            return {}
        measured = self._session.measure(iteration, self._control.cycles[self._session.course.control.rung])
        return {"gradient_cosine": measured.cosine, "gradient_error": measured.distance}

    def _iterate(self, iteration: int, evaluation: Row, at_end: bool) -> Row:
        """One update; the last time it only serves to see what training sees of the final parameters."""
        start, course = time.perf_counter(), self._session.course
        info = self._session.update(iteration)
        course.seconds += 0.0 if at_end else time.perf_counter() - start
        layers = {"layers": self._session.network.network.layers}
        shown = figures(info)
        course.control = self._control.observe(course.control, shown)
        return {"iteration": iteration, **layers, **shown, **evaluation, "seconds": course.seconds}

    def _trouble(self, row: Row, checkpoint: Checkpoint | None) -> str:
        """What is wrong, if anything."""
        reason = trouble(row, self._session.course, self._config.recovery.growth)
        if not reason and checkpoint and not is_finite(checkpoint.snapshot):
            return "parameters, states or adjoints are not finite"
        return reason

    def _step_back(self, row: Row, reason: str, listener: Listener) -> int:
        """Go back to the last good state with a smaller learning rate; its iteration."""
        before, rungs = self._session.course.control.rung, len(self._control.cycles)
        course = stepped_back(self._session.course, self._good, row, reason, self._config.recovery, rungs)
        assert self._good is not None
        self._session.change(course, self._good.snapshot)
        listener.cut(self.iteration)
        careful = f", {self._control.name(course.control.rung)}" if course.control.rung != before else ""
        action = f"back to iteration {self.iteration}, learning rate x {course.rate:g}{careful}"
        self._decided(listener, {"iteration": row["iteration"], "action": action, "reason": reason})
        return self.iteration

    def _watch(self, iteration: int, listener: Listener) -> None:
        """Let the control of inexactness decide; its comparisons are on the clock."""
        start, session = time.perf_counter(), self._session
        for event in self._control.watch(session, iteration):
            self._decided(listener, event)
        session.course.seconds += time.perf_counter() - start

    def _note_end(self, row: Row, listener: Listener) -> None:
        """End a training of the published loop that has converged, or whose line searches keep failing."""
        course, outcome = self._session.course, jm.Outcome(row.get("outcome", jm.Outcome.STEP))
        course.failed_searches = course.failed_searches + 1 if outcome == jm.Outcome.LINE_SEARCH_FAILED else 0
        if outcome == jm.Outcome.CONVERGED or course.failed_searches >= FAILED_SEARCHES:
            course.end = row["iteration"] + 1
            times = f"for {FAILED_SEARCHES} iterations: " if course.failed_searches else ""
            event = {"iteration": row["iteration"], "action": "training ends", "reason": times + outcome.sentence}
            self._decided(listener, event)

    def _refine(self, row: Row, iteration: int, listener: Listener) -> None:
        """Go on with the next network of a nested training, if it is time to."""
        session = self._session
        # The config itself is the last, deepest network.
        if session.network is self._config:
            return
        ended = "" if session.course.end is None else "training it has come to its end"
        reason = ended or nested.reason_to_refine(session.network, iteration - session.course.begun, row)
        if reason:
            session.refine(iteration)
            action = f"on to {session.network.network.layers} layers"
            self._decided(listener, {"iteration": iteration, "action": action, "reason": reason})

    def _decided(self, listener: Listener, event: Row) -> None:
        self._session.course.events += 1
        listener.event(event)
