"""What all baselines do with their student, whatever they make of its loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.core.flat import FlatModule
from l2t_ray.core.hypergrad import hypergradient
from l2t_ray.core.meta_step import StudentSgd, initial_student
from l2t_ray.core.round_metrics import plain_metrics
from l2t_ray.core.unroll import GradientStep, InnerLoss, InnerProblem, StepStatistics, plain_steps, sgd_steps
from l2t_ray.interfaces import Batch, Group, Metrics, Rows, StudentState, Task

RowLoss = Callable[[Float[Tensor, "n c"], Int[Tensor, " n"]], Float[Tensor, " n"]]
"""`(logits, labels) -> the loss of each row`."""


def cross_entropy(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return F.cross_entropy(logits, labels, reduction="none")


@dataclass(frozen=True)
class Trainee:
    """The student as a method finds it: a template of its model, its task, its SGD and its workers' group."""

    student: FlatModule
    task: Task
    sgd: StudentSgd
    group: Group
    device: torch.device | str = "cpu"

    def initial(self) -> StudentState:
        return initial_student(self.student, self.device)

    def rows(self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> Rows:
        return self.task.rows(self.student(theta, buffers, batch.inputs, training=True), batch)

    def rows_and_features(
        self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Rows, Float[Tensor, "n d"]]:
        """Rows, and the features that the student's last layer reads."""
        outputs, features = self.student(theta, buffers, batch.inputs, with_embedding=True, training=True)
        return self.task.rows(outputs, batch), features

    def seen(self, student: StudentState, batch: Batch) -> tuple[Rows, Float[Tensor, "n d"]]:
        """Rows and features of a student that is only looked at: in evaluation mode."""
        outputs, features = self.student(
            student.theta, student.buffers, batch.inputs, with_embedding=True, training=False
        )
        return self.task.rows(outputs, batch), features

    def error(self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        """This worker's share of the validation error."""
        return self.task.error(self.student(theta, buffers, batch.inputs, training=True), batch)

    def problem(self, inner_loss: InnerLoss) -> InnerProblem:
        return InnerProblem(inner_loss, self.error, self.group, self.sgd.momentum, self.sgd.weight_decay)

    def train(
        self,
        inner_loss: InnerLoss,
        student: StudentState,
        weights: Float[Tensor, " m"],
        batches: Sequence[Batch],
        rates: Sequence[float],
    ) -> tuple[StudentState, list[StepStatistics]]:
        """One step of the student's SGD a batch, under the loss with these weights."""
        return plain_steps(self.problem(inner_loss), student, weights, batches, rates)

    def step(
        self,
        student: StudentState,
        batch: Batch,
        rate: float,
        step_gradient: GradientStep,
        *,
        weight_decay: float | None = None,
    ) -> tuple[StudentState, list[StepStatistics]]:
        """One step of the student's SGD along a gradient that the method computes itself.

        `weight_decay` stands in for that of the student's SGD where the gradient holds some already.
        """
        problem = self.problem(_computed_elsewhere)
        if weight_decay is not None:
            problem = replace(problem, weight_decay=weight_decay)
        return sgd_steps(problem, student, [batch], [rate], step_gradient)

    def validation_gradient(
        self,
        inner_loss: InnerLoss,
        student: StudentState,
        weights: Float[Tensor, " m"],
        batch: Batch,
        val: Batch,
        rate: float,
    ) -> Float[Tensor, " m"]:
        """How the validation error after one virtual step depends on the loss's weights, summed over workers.

        The virtual step is plain gradient descent, `theta - rate * dL/dtheta`, without momentum and weight decay;
        neither the student nor its batch-norm statistics move.
        """
        problem = replace(self.problem(inner_loss), momentum=0.0, weight_decay=0.0)
        result = hypergradient(problem, student, weights, [batch], val, rates=[rate])
        return self.group.sum(result.gradient)

    def report(self, student: StudentState, val: Batch, statistics: list[StepStatistics], rate: float) -> Metrics:
        """Numbers of a round, with the validation error of its last student."""
        return plain_metrics(self.problem(_computed_elsewhere), student, val, statistics, rate)


def _computed_elsewhere(*_: object) -> tuple[Tensor, Tensor]:
    raise AssertionError("this step's gradient is given, its loss is not to be evaluated")
