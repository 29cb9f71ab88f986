"""Training with a loss that does not change: cross-entropy and robust losses."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from l2t_ray.core.loss.memory import Memory
from l2t_ray.core.student import RowLoss, Trainee, cross_entropy
from l2t_ray.interfaces import Batch, MethodState, Metrics, RoundBatches


class FixedLoss:
    """K SGD steps a round on the mean of a fixed loss, with the batches that any other method would be given.

    The validation minibatch is looked at after the round, for the record only.

    Args:
        is_clean: by image of the training set (`Batch.indices`), whether its label is to be trusted; such images are
            under plain cross-entropy. None: all images are under `loss`.
        memory: kept up to date for a later phase whose loss reads it.
    """

    def __init__(
        self,
        trainee: Trainee,
        loss: RowLoss,
        *,
        is_clean: Bool[Tensor, " images"] | None = None,
        memory: Memory | None = None,
    ):
        self._trainee, self._row_loss = trainee, loss
        self._is_clean, self._memory = is_clean, memory
        self._no_weights = torch.zeros(0, device=trainee.device)

    def init(self) -> MethodState:
        return MethodState(self._trainee.initial(), {} if self._memory is None else self._memory.begin())

    def round(self, state: MethodState, batches: RoundBatches, index: int) -> tuple[MethodState, Metrics]:
        trainee = self._trainee
        if self._memory is not None:
            state = self._memory.updated(state, batches)
        rates = trainee.schedule.rates(index, len(batches.train))
        student, statistics = trainee.train(self._loss, state.student, self._no_weights, batches.train, rates)
        return state._replace(student=student), trainee.report(student, batches.val, statistics, rates[-1])

    def _loss(
        self, theta: Tensor, weights: Tensor, buffers: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        del weights  # it has none
        rows = self._trainee.rows(theta, buffers, batch)
        losses = self._row_loss(rows.logits, rows.labels)
        if self._is_clean is not None:
            losses = torch.where(
                self._is_clean[batch.indices[rows.owner]], cross_entropy(rows.logits, rows.labels), losses
            )
        return rows.total(losses), rows.logits
