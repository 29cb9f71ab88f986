"""The rounds of a `fit`: who hears of them, and what can be given back after each."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from torch import Tensor

from l2t_ray.assembly.callbacks import Callback, EarlyStopping
from l2t_ray.assembly.fit_checkpoints import FitCheckpoints
from l2t_ray.assembly.fit_parts import FitParts
from l2t_ray.assembly.fit_result import Fit
from l2t_ray.assembly.suspected_labels import suspects_of
from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.core.noise_estimate import NoiseEstimate
from l2t_ray.interfaces import DivergenceError, LearnsLoss, MethodState, StoppedError, StudentState, UserError
from l2t_ray.tasks.classification import Classification
from l2t_ray.tracking.screen import Screen
from l2t_ray.training.checkpoint import Checkpoint, plain_student
from l2t_ray.training.loop import Run
from l2t_ray.training.user_module import copied

_LOG = logging.getLogger(__name__)


class Moment(NamedTuple):
    """A model that can be given back.

    Attributes:
        rounds: that it was trained for.
        phi: weights of the loss that it would have been trained with next; None: it has none of its own.
    """

    rounds: int
    student: StudentState
    phi: Tensor | None


@dataclass
class Rounds:
    """Hears of each round of a run.

    Attributes:
        newest: the training after its latest whole round; None: before the first.
        last: the model then.
        best: the model that `EarlyStopping` keeps; None: none is kept.
        noise: the newest estimate of the label noise; None: there is none.
    """

    parts: FitParts
    run: Run
    callbacks: Sequence[Callback]
    on_row: Callable[[Mapping[str, Any]], None]
    screen: Screen
    checkpoints: FitCheckpoints | None = None
    newest: Checkpoint | None = None
    last: Moment | None = None
    best: Moment | None = None
    noise: NoiseEstimate | None = None

    def trained(self) -> Fit:
        """Trains to the end, or until a callback or Ctrl-C ends it.

        Raises:
            KeyboardInterrupt: before the first whole round.
            Exception: whatever ends the training; where a round was done before, with a `Fit` as its `partial`.
        """
        try:
            stopped = self._train()
        except KeyboardInterrupt:
            if self.newest is None:
                raise
            stopped = "Ctrl-C"
            _LOG.warning(
                "stopped by Ctrl-C: this is the model after round %d of %d.", self.newest.round, self.run.num_rounds
            )
        except Exception as error:
            self._save_at_last()
            if self.newest is not None:
                with suppress(Exception):  # what ended the training is what is to be heard of
                    self._attach_to(error)
            raise
        self._save_at_last()
        return self.result(stopped)

    def _attach_to(self, error: Exception) -> None:
        partial = self.result(type(error).__name__)
        error.partial = partial  # pyright: ignore[reportAttributeAccessIssue]
        error.add_note(f"The {len(partial.rows)} rounds before are this exception's `partial`, a Fit.")

    def _train(self) -> str | None:
        """Trains what is left, until a callback ends it: why it did.

        Raises:
            DivergenceError: if the training error or a gradient is not finite.
        """
        arm, metrics = self.run.arms[0].name, (self.parts.task or Classification()).metrics
        start = self._latest()
        rows = [] if start is None else start.rows
        for callback in self._stoppings():
            if self.parts.source.teaches_validation and callback.watches_validation(metrics):
                _LOG.warning(
                    "EarlyStopping watches the validation set, which is trained on as well: too good; give it "
                    "metric=%r and a test= for that alone.",
                    metrics[0].on_test,
                )
            # Without the best model of before there is nothing to give back of it.
            if callback.begin(metrics, rows if callback.keep == "last" or self.best else ()):
                return str(callback)
        self.screen.start([(arm, self.run.num_rounds)], metrics[0])
        try:
            for row in rows:
                self.screen.update(row)
            end = self.run.train(start=start, store=None, on_row=lambda row: None, on_checkpoint=self._hear)
        except StoppedError as stopped:
            return str(stopped)
        finally:
            self.screen.stop()
        if end.diverged:
            raise DivergenceError(*end.diverged.values())
        return None

    def _hear(self, checkpoint: Checkpoint) -> None:
        if checkpoint.diverged:  # nothing of that round is kept
            return
        state, method, phi = checkpoint.state, self.run.arms[0].method, None
        if self.run.arms[0].teacher is not None and isinstance(method, LearnsLoss):
            phi = method.learned_loss(state)
        self.last = Moment(checkpoint.round, state.student, None if phi is None else phi.cpu().clone())
        if self.parts.estimates and self.noise is not (newest := self.parts.estimates[-1]):
            self.noise = newest
            self.screen.message(f"label noise: {newest}")
        self.newest = replace(checkpoint, rows=list(checkpoint.rows))
        row = checkpoint.rows[-1]
        self.screen.update(row)
        self.on_row(dict(row))
        stops = [callback for callback in self.callbacks if self._ends(callback, row)]
        if self.checkpoints is not None and self.checkpoints.is_due(self.newest):
            self.checkpoints.save(self.newest, self._aside())
        if stops and checkpoint.round < self.run.num_rounds:
            raise StoppedError(str(stops[0]) if isinstance(stops[0], EarlyStopping) else "a callback returned True")

    def _ends(self, callback: Callback, row: Mapping[str, Any]) -> bool:
        answer = callback(row["round"], dict(row))
        if isinstance(callback, EarlyStopping) and callback.keep == "best" and callback.improved:
            self.best = self.last
        return isinstance(answer, bool | np.bool_) and bool(answer)

    def _stoppings(self) -> list[EarlyStopping]:
        return [callback for callback in self.callbacks if isinstance(callback, EarlyStopping)]

    def _latest(self) -> Checkpoint | None:
        """Where the training goes on, with what was kept beside it."""
        start = None if self.checkpoints is None else self.checkpoints.latest()
        if start is None:
            return None
        self.newest, aside = start, start.aside
        self.last = Moment(start.round, start.state.student, aside["phi"])
        if aside["best"] is not None and any(stopping.keep == "best" for stopping in self._stoppings()):
            self.best = Moment(aside["best"]["rounds"], StudentState(**aside["best"]["student"]), aside["best"]["phi"])
        if aside["noise"] is not None:
            self.noise = NoiseEstimate(**aside["noise"])
        return start

    def _aside(self) -> dict[str, Any]:
        assert self.last is not None
        best = self.best and {**self.best._asdict(), "student": plain_student(self.best.student)}
        return {"phi": self.last.phi, "best": best, "noise": self.noise and self.noise._asdict()}

    def _save_at_last(self) -> None:
        """Writes what was not yet written. If that fails it is only said: the result is given back all the same."""
        if self.checkpoints is not None and self.newest is not None:
            try:
                self.checkpoints.save(self.newest, self._aside())
            except UserError as error:
                _LOG.warning("%s", error)

    def result(self, stopped: str | None) -> Fit:
        """What there is after the latest whole round."""
        newest, last, parts = self.newest, self.last, self.parts
        assert newest is not None and last is not None
        kept, arm = self.best or last, newest.arm
        self.run.student.load(kept.student.theta, kept.student.buffers)
        loss = None
        if parts.loss is not None:
            loss = LearnedLoss(parts.loss) if kept.phi is None else LearnedLoss(parts.loss, kept.phi)
        seen = replace(
            newest,
            memories=_memories(arm, newest.state),
            snapshots={} if last.phi is None else {arm: {last.rounds: last.phi}},
        )
        return Fit(
            copied(parts.student).to(parts.home).eval(),
            loss,
            newest.rows,
            self.noise,
            suspects_of(parts.config.method, seen, parts.source),
            are_logits=parts.task is None,
            num_rounds=kept.rounds,
            stopped=stopped,
        )


def screen_of(progress: bool) -> Screen:
    """A bar on standard error, where that is a terminal and progress is asked for."""
    console = Console(stderr=True, highlight=False)
    return Screen(quiet=not (progress and console.is_terminal), console=console)


def _memories(arm: str, state: MethodState) -> dict[str, Tensor]:
    return {arm: state.extra["tally"]} if "tally" in state.extra else {}
