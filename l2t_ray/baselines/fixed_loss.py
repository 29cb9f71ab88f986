"""Training with a loss that does not change: cross-entropy, robust losses, a loss network without a teacher."""

from collections.abc import Mapping

import torch
from torch import Tensor

from l2t_ray.baselines.trainee import RowLoss, Trainee
from l2t_ray.interfaces import Batch, MethodState, Metrics, RoundBatches


class FixedLoss:
    """K SGD steps a round on the mean of a fixed loss, with the batches that any other method would be given.

    The validation minibatch is looked at after the round, for the record only.
    """

    def __init__(self, trainee: Trainee, loss: RowLoss):
        self._trainee, self._row_loss = trainee, loss
        self._no_weights = torch.zeros(0, device=trainee.device)

    def init(self) -> MethodState:
        return MethodState(self._trainee.initial(), {})

    def round(self, state: MethodState, batches: RoundBatches, index: int) -> tuple[MethodState, Metrics]:
        trainee = self._trainee
        rates = trainee.sgd.rates(index, len(batches.train))
        student, statistics = trainee.train(self._loss, state.student, self._no_weights, batches.train, rates)
        return MethodState(student, {}), trainee.report(student, batches.val, statistics, rates[-1])

    def _loss(
        self, theta: Tensor, weights: Tensor, buffers: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        del weights  # it has none
        rows = self._trainee.rows(theta, buffers, batch)
        return (rows.weights * self._row_loss(rows.logits, rows.labels)).sum(), rows.logits
