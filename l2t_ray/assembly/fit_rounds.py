"""The rounds of a `fit`: who hears of them, and what can be given back after each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from torch import Tensor

from l2t_ray.assembly.callbacks import Callback, EarlyStopping
from l2t_ray.assembly.fit_parts import FitParts
from l2t_ray.assembly.fit_result import Fit
from l2t_ray.assembly.suspected_labels import suspects_of
from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.interfaces import DivergenceError, LearnsLoss, MethodState, StoppedError, StudentState
from l2t_ray.tasks.classification import Classification
from l2t_ray.tracking.screen import Screen
from l2t_ray.training.checkpoint import Checkpoint
from l2t_ray.training.loop import Run
from l2t_ray.training.user_module import copied


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
    """

    parts: FitParts
    run: Run
    callbacks: Sequence[Callback]
    on_row: Callable[[Mapping[str, Any]], None]
    screen: Screen
    newest: Checkpoint | None = None
    last: Moment | None = None
    best: Moment | None = field(default=None)

    def train(self) -> str | None:
        """Trains to the end, or until a callback ends it: why it did.

        Raises:
            DivergenceError: if the training error or a gradient is not finite.
        """
        arm, metrics = self.run.arms[0].name, (self.parts.task or Classification()).metrics
        for callback in self.callbacks:
            if isinstance(callback, EarlyStopping):
                callback.begin(metrics)
        self.screen.start([(arm, self.run.num_rounds)], metrics[0])
        try:
            end = self.run.train(start=None, store=None, on_row=lambda row: None, on_checkpoint=self._hear)
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
        self.newest = replace(checkpoint, rows=list(checkpoint.rows))
        row = checkpoint.rows[-1]
        self.screen.update(row)
        self.on_row(dict(row))
        stops = [callback for callback in self.callbacks if self._ends(callback, row)]
        if stops and checkpoint.round < self.run.num_rounds:
            raise StoppedError(str(stops[0]) if isinstance(stops[0], EarlyStopping) else "a callback returned True")

    def _ends(self, callback: Callback, row: Mapping[str, Any]) -> bool:
        answer = callback(row["round"], dict(row))
        if isinstance(callback, EarlyStopping) and callback.keep == "best" and callback.improved:
            self.best = self.last
        return isinstance(answer, bool | np.bool_) and bool(answer)

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
            parts.estimates[-1] if parts.estimates else None,
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
    return {arm: state.extra["memory"]} if "memory" in state.extra else {}
