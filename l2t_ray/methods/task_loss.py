"""Training with the task's own loss, which stays as it is: the control of a learned combination of its terms."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from l2t_ray.core.student import Trainee, own_loss
from l2t_ray.interfaces import Batch, Method, MethodState, Metrics, RoundBatches, Task, UserError
from l2t_ray.methods.parts import Parts
from l2t_ray.methods.phases import Phase
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.settings.record import Text


@runtime_checkable
class HasForms(Protocol):
    """A task whose own loss is written in more than one form."""

    @property
    def forms(self) -> Sequence[str]: ...
    def in_form(self, form: str) -> Task:
        """The same task with one of these forms of its loss."""
        ...


class TaskLossConfig(MethodSettings):
    """The task's own loss, as it is: cross-entropy of classification, and otherwise the sum of the task's terms, which
    a learned combination of them begins as."""

    name: Literal["task_loss"] = "task_loss"
    form: Text | None = None
    """One of the forms of that loss, whatever the run's own is (detection: `darknet`, `paper`); null: the run's own.
    Arms of several forms stand in one table: all are judged by the run's own error."""

    @property
    def called(self) -> str:
        return self.form or super().called

    def build(self, parts: Parts) -> "TaskLoss":
        """
        Raises:
            UserError: if the task's loss has no such form.
        """
        return TaskLoss(parts.trainee, self._formed(parts.trainee.task))

    def plain(self, parts: Parts) -> Method:
        return self.build(parts)

    def ending(self, parts: Parts) -> list[Phase]:
        if self.clean_images != "trusted":
            return super().ending(parts)
        return [Phase(self.ending_start(parts.num_rounds), self.build(parts), parts.source.mixed())]

    def _formed(self, task: Task) -> Task:
        if self.form is None:
            return task
        if not isinstance(task, HasForms):
            raise UserError(
                f"method.form is {self.form!r}, and the loss of {task.name} has one form alone; leave method.form out."
            )
        if self.form not in task.forms:
            raise UserError(
                f"method.form is {self.form!r}, and the loss of {task.name} has the forms {', '.join(task.forms)}; set "
                "one of them, or leave method.form out."
            )
        return task.in_form(self.form)


class TaskLoss:
    """K steps a round on a task's own loss, with the batches that any other method would be given.

    Args:
        taught: the task whose loss is minimised; None: that of the trainee, by which students are judged in any case.
    """

    def __init__(self, trainee: Trainee, taught: Task | None = None):
        self._trainee = trainee
        self._taught = trainee if taught is None else replace(trainee, task=taught)
        self._no_weights = torch.zeros(0, device=trainee.device)

    def init(self) -> MethodState:
        return MethodState(self._trainee.initial(), {})

    def round(self, state: MethodState, batches: RoundBatches, index: int) -> tuple[MethodState, Metrics]:
        rates = self._trainee.schedule.rates(index, len(batches.train))
        student, statistics = self._taught.train(self._loss, state.student, self._no_weights, batches.train, rates)
        return state._replace(student=student), self._trainee.report(student, batches.val, statistics, rates[-1])

    def _loss(
        self, theta: Tensor, weights: Tensor, buffers: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        del weights  # it has none
        terms = self._taught.terms(theta, buffers, batch)
        return own_loss(terms, self._taught.task), terms.outputs
