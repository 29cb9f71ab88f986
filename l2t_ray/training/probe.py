"""What a method makes of labels that are wrong: measured from outside, on images it trains on, while it trains.

The probe alone knows which labels are wrong; no method is told.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.core.student import outputs_of
from l2t_ray.interfaces import Batch, Method, MethodState, Metrics, Task, Weighing


class Probe:
    """Measures an arm in the middle of its training, without touching it.

    - `reproduced`: memorised wrong labels: the share of them that the student predicts.
    - `weight_auc`: how well a sample's weight tells wrong labels from right ones (1: every wrong one weighs less than
      every right one; .5: not at all), for methods that weigh samples.
    - `weight_right`, `weight_wrong`: mean weight of either kind.
    """

    def __init__(self, student: FlatModule, task: Task, batches: Sequence[Batch], is_wrong: Bool[np.ndarray, " n"]):
        """
        Args:
            task: one whose rows are examples.
            batches: training images with the labels that the student is taught, unaugmented, the same on each worker.
            is_wrong: for each of them in order, whether that label is wrong.
        """
        self._student, self._task, self._batches, self._is_wrong = student, task, batches, is_wrong

    @torch.no_grad()
    def __call__(self, method: Method, state: MethodState, index: int) -> Metrics:
        is_predicted = self._each(lambda batch: self._is_predicted(state, batch))
        metrics = {"reproduced": float(is_predicted[self._is_wrong].mean())}
        weights = self._weights(method, state, index)
        if weights is not None:
            metrics["weight_auc"] = roc_auc(-weights, self._is_wrong)
            metrics["weight_right"] = float(weights[~self._is_wrong].mean())
            metrics["weight_wrong"] = float(weights[self._is_wrong].mean())
        return metrics

    def _weights(self, method: Method, state: MethodState, index: int) -> np.ndarray | None:
        if not isinstance(method, Weighing):
            return None
        weights = [method.sample_weights(state, batch, index) for batch in self._batches]
        known = [piece.double().cpu() for piece in weights if piece is not None]
        return torch.cat(known).numpy() if len(known) == len(weights) else None

    def _is_predicted(self, state: MethodState, batch: Batch) -> torch.Tensor:
        """Whether the student gives each label."""
        outputs = outputs_of(self._student, state.student.theta, state.student.buffers, batch, training=False)
        rows = self._task.terms(outputs, batch).rows
        assert rows is not None  # of class decisions labels are wrong
        return rows.logits.argmax(dim=1) == rows.labels

    def _each(self, measure) -> np.ndarray:
        return torch.cat([measure(batch).double().cpu() for batch in self._batches]).numpy()


def roc_auc(scores: Float[np.ndarray, " n"], is_positive: Bool[np.ndarray, " n"]) -> float:
    """Probability that a positive scores higher than a negative, ties counted half: the area under the ROC curve.

    Raises:
        ValueError: if there are only positives, or none.
    """
    num_positive = int(is_positive.sum())
    num_negative = len(scores) - num_positive
    if not num_positive or not num_negative:
        raise ValueError(f"an ROC curve needs positives and negatives, got {num_positive} and {num_negative}.")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # from 1; equal scores share the mean of theirs
    return float((ranks[is_positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))
