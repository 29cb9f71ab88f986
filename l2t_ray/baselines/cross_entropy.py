"""Plain training with cross-entropy: the control that every learned loss is held against."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from l2t_ray.core.flat import FlatModule, clone_buffers
from l2t_ray.core.meta_step import StudentSgd, initial_student, round_metrics
from l2t_ray.core.unroll import InnerProblem, loss_gradients, sgd_steps
from l2t_ray.interfaces import Batch, Group, MethodState, Metrics, RoundBatches, Task


class CrossEntropy:
    """K SGD steps a round on the mean cross-entropy, with the batches that any other method would be given.

    The validation minibatch is looked at after the round, for the record only.
    """

    def __init__(
        self, student: FlatModule, task: Task, sgd: StudentSgd, group: Group, *, device: torch.device | str = "cpu"
    ):
        self._student, self._task, self._sgd, self._group, self._device = student, task, sgd, group, device
        self._problem = InnerProblem(self._loss, self._error, group, sgd.momentum, sgd.weight_decay)
        self._no_phi = torch.zeros(0, device=device)

    def init(self) -> MethodState:
        return MethodState(initial_student(self._student, self._device), {})

    def round(self, state: MethodState, batches: RoundBatches, index: int) -> tuple[MethodState, Metrics]:
        rates = self._sgd.rates(index, len(batches.train))
        student, statistics = sgd_steps(self._problem, state.student, batches.train, rates, self._step_gradient)
        with torch.no_grad():
            error = self._error(student.theta, clone_buffers(student.buffers), batches.val)
        return MethodState(student, state.extra), {
            **round_metrics(self._group, error, statistics),
            "lr": rates[-1],
        }

    def _step_gradient(
        self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        leaf = theta.detach().requires_grad_()
        return loss_gradients(self._problem, leaf, self._no_phi, buffers, batch)

    def _loss(self, theta: Tensor, phi: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        del phi  # cross-entropy has no weights of its own
        rows = self._task.rows(self._student(theta, buffers, batch.inputs, training=True), batch)
        losses = F.cross_entropy(rows.logits, rows.labels, reduction="none")
        return (rows.weights * losses).sum(), rows.logits

    def _error(self, theta: Tensor, buffers: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return self._task.error(self._student(theta, buffers, batch.inputs, training=True), batch)
