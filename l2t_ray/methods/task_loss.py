"""Training with the task's own loss, which stays as it is: the control of a learned combination of its terms."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from l2t_ray.core.student import Trainee, own_loss
from l2t_ray.interfaces import Batch, Method, MethodState, Metrics, RoundBatches, Task, Terms, UserError
from l2t_ray.methods.parts import Parts
from l2t_ray.methods.phases import Phase
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.settings.record import Positive, Text


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
    weights: Annotated[dict[str, Positive], Field(max_length=100)] = Field(default_factory=dict)
    """By term, how many times as much it counts as in that loss (detection: `l_loc`, `l_cls`, `l_conf_object`,
    `l_conf_background`); a term that is left out counts as it does there."""

    @property
    def called(self) -> str:
        return self.form or super().called

    def build(self, parts: Parts) -> "TaskLoss":
        """
        Raises:
            UserError: if the task's loss has no such form, or a term that is weighed.
        """
        task = self._formed(parts.trainee.task)
        if foreign := sorted(self.weights.keys() - task.kinds.keys()):
            own = f"has the terms {', '.join(task.kinds)}" if task.kinds else "has no terms"
            raise UserError(
                f"method.weights has {foreign[0]!r}, and the loss of {task.name} {own}; weigh those, or leave "
                "method.weights out."
            )
        return TaskLoss(parts.trainee, task, self.weights)

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
        weights: by term, how many times as much it counts as in that loss.
    """

    def __init__(self, trainee: Trainee, taught: Task | None = None, weights: Mapping[str, float] | None = None):
        self._trainee, self._weights = trainee, weights or {}
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
        return own_loss(self._weighed(terms), self._taught.task), terms.outputs

    def _weighed(self, terms: Terms) -> Terms:
        if not self._weights:
            return terms
        values = {
            name: term._replace(weights=self._weights.get(name, 1.0) * term.weights)
            for name, term in terms.values.items()
        }
        return terms._replace(values=values)
