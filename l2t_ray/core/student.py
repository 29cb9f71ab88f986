"""The student as every method finds it: a template of its model, its task, its optimizer and its workers' group.

What a method makes of its student's loss is the method's business; how the student answers, steps and reports is here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.hypergradient import hypergradient
from l2t_ray.bilevel.optimizers import PLAIN_SGD, Optimizer
from l2t_ray.bilevel.unroll import GradientStep, InnerLoss, InnerProblem, StepStatistics, plain_steps, student_steps
from l2t_ray.core.round_metrics import plain_metrics
from l2t_ray.interfaces import Batch, Group, Metrics, Rows, StudentState, Task, Terms, UserError

RateSchedule = Callable[[int], float]
"""The student's learning rate at a step, counted from the first step of training."""

RowLoss = Callable[[Float[Tensor, "n c"], Int[Tensor, " n"]], Float[Tensor, " n"]]
"""`(logits, labels) -> the loss of each row`."""


def cross_entropy(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return F.cross_entropy(logits, labels, reduction="none")


def weighted_cross_entropy(weights: Float[Tensor, " c"]) -> RowLoss:
    """`w_y * -log p_y`."""

    def loss(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return weights.to(logits)[labels] * cross_entropy(logits, labels)

    return loss


@dataclass(frozen=True)
class StudentSchedule:
    """How the student is trained: learning rate a step, steps a round, and the optimizer that takes them."""

    rate: RateSchedule
    num_steps: int
    optimizer: Optimizer = PLAIN_SGD

    def rates(self, index: int, num_batches: int) -> list[float]:
        return [self.rate(index * self.num_steps + k) for k in range(num_batches)]


@dataclass(frozen=True)
class Trainee:
    """The student as a method finds it."""

    student: FlatModule
    task: Task
    schedule: StudentSchedule
    group: Group
    device: torch.device | str = "cpu"

    def initial(self) -> StudentState:
        theta = self.student.initial().to(self.device)
        buffers = {name: buffer.to(self.device) for name, buffer in self.student.initial_buffers().items()}
        return self.schedule.optimizer.begin(theta, buffers)

    @property
    def gives_embedding(self) -> bool:
        """Whether the student can be asked for what its last layer reads."""
        return "with_embedding" in signature(self.student.module.forward).parameters

    def outputs(
        self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch, *, training: bool, **options: Any
    ) -> Any:
        """See `outputs_of`."""
        return outputs_of(self.student, theta, buffers, batch, training=training, **options)

    def embedded(
        self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch, *, training: bool
    ) -> tuple[Any, Float[Tensor, "n d"]]:
        """Outputs, and what the student's last layer reads.

        Raises:
            UserError: if it gives something else when it is asked for that.
        """
        both = self.outputs(theta, buffers, batch, with_embedding=True, training=training)
        is_pair = isinstance(both, tuple) and len(both) == 2
        if not is_pair or not isinstance(both[1], Tensor) or both[1].ndim != 2:
            raise UserError(
                "forward(inputs, with_embedding=True) of the student must give its outputs and, after them, one vector "
                "[n, d] an example, that its last layer reads; mend it, or leave the argument out."
            )
        return both

    def terms(self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> Terms:
        return self.task.terms(self.outputs(theta, buffers, batch, training=True), batch)

    def rows(self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> Rows:
        return rows_of(self.terms(theta, buffers, batch), self.task)

    def rows_and_features(
        self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Rows, Float[Tensor, "n d"]]:
        """Rows, and the features that the student's last layer reads."""
        outputs, features = self.embedded(theta, buffers, batch, training=True)
        return rows_of(self.task.terms(outputs, batch), self.task), features

    def seen_terms(self, student: StudentState, batch: Batch) -> Terms:
        """Terms of a student that is only looked at: in evaluation mode."""
        return self.task.terms(self.outputs(student.theta, student.buffers, batch, training=False), batch)

    def seen_rows(self, student: StudentState, batch: Batch) -> Rows:
        """As `seen_terms`, the rows alone."""
        return rows_of(self.seen_terms(student, batch), self.task)

    def seen(self, student: StudentState, batch: Batch) -> tuple[Rows, Float[Tensor, "n d"]]:
        """As `seen_rows`, and the features that the student's last layer reads."""
        outputs, features = self.embedded(student.theta, student.buffers, batch, training=False)
        return rows_of(self.task.terms(outputs, batch), self.task), features

    def features(self, student: StudentState, batch: Batch) -> Float[Tensor, "n d"]:
        """What the student's last layer reads, in evaluation mode; where it does not give that, its log-probabilities
        in double precision.

        Raises:
            UserError: if it gives something else when it is asked for that.
        """
        if self.gives_embedding:
            return self.embedded(student.theta, student.buffers, batch, training=False)[1]
        return self.outputs(student.theta, student.buffers, batch, training=False).double().log_softmax(dim=1)

    def error(self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        """This worker's share of the validation error."""
        return self.task.error(self.outputs(theta, buffers, batch, training=True), batch, self.group)

    def problem(self, inner_loss: InnerLoss) -> InnerProblem:
        """What this student minimises and how, and the validation error of the loss."""
        return InnerProblem(inner_loss, self.error, self.group, self.schedule.optimizer)

    def train(
        self,
        inner_loss: InnerLoss,
        student: StudentState,
        weights: Float[Tensor, " m"],
        batches: Sequence[Batch],
        rates: Sequence[float],
    ) -> tuple[StudentState, list[StepStatistics]]:
        """One step of the student's optimizer a batch, under the loss with these weights."""
        return plain_steps(self.problem(inner_loss), student, weights, batches, rates)

    def step(
        self,
        student: StudentState,
        batch: Batch,
        rate: float,
        step_gradient: GradientStep,
        *,
        has_decay: bool = False,
    ) -> tuple[StudentState, list[StepStatistics]]:
        """One step of the student's optimizer along a gradient that the method computes itself.

        `has_decay` says that the gradient holds the weight decay already, as far as that is a term of the loss
        (`Optimizer.loss_decay`).
        """
        problem = self.problem(_computed_elsewhere)
        if has_decay:
            problem = replace(problem, optimizer=problem.optimizer.without_loss_decay())
        return student_steps(problem, student, [batch], [rate], step_gradient)

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

        The virtual step is plain gradient descent, `theta - rate * dL/dtheta`, whatever the student's optimizer is:
        without momentum, weight decay and clipping. Neither the student nor its batch-norm statistics move.
        """
        problem = replace(self.problem(inner_loss), optimizer=PLAIN_SGD)
        result = hypergradient(problem, student, weights, [batch], val, rates=[rate])
        return self.group.sum(result.gradient)

    def report(self, student: StudentState, val: Batch, statistics: list[StepStatistics], rate: float) -> Metrics:
        """Numbers of a round without a hypergradient, with the validation error of its last student."""
        return plain_metrics(self.problem(_computed_elsewhere), student, val, statistics, rate)


def _computed_elsewhere(*_: object) -> tuple[Tensor, Tensor]:
    raise AssertionError("this step's gradient is given, its loss is not to be evaluated")


def outputs_of(
    model: FlatModule, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch, *, training: bool, **options: Any
) -> Any:
    """What a model makes of a minibatch. Inputs by name are keyword arguments of the model."""
    if isinstance(batch.inputs, Mapping):
        return model(theta, buffers, **batch.inputs, training=training, **options)
    return model(theta, buffers, batch.inputs, training=training, **options)


def own_loss(terms: Terms, task: Task | None) -> Float[Tensor, ""]:
    """This worker's share of the task's own loss: the sum of its terms, or cross-entropy on its rows.

    Raises:
        UserError: if the task has neither.
    """
    if not terms.values:
        rows = rows_of(terms, task)
        return rows.total(cross_entropy(rows.logits, rows.labels))
    total = torch.stack([(term.weights * term.values).sum() for term in terms.values.values()]).sum()
    return total if terms.rest is None else total + terms.rest


def rows_of(terms: Terms, task: Task | None) -> Rows:
    """The class decisions of a minibatch, with what is minimised beside them.

    Raises:
        UserError: if the task has none.
    """
    if terms.rows is None:
        name = "this task" if task is None else task.name
        raise UserError(
            f"this method or loss reads class decisions, and {name} has none; take one that combines the task's "
            "own terms."
        )
    return terms.rows if terms.rows.rest is not None else terms.rows._replace(rest=terms.rest)
