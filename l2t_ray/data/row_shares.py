"""Weights of minibatches whose examples have different numbers of rows: pixels that count, boxes, tokens."""

from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor

from l2t_ray.interfaces import Batch, Data, Group, RoundBatches, Task, UserError


class RowShares:
    """Gives each example the share of one of its rows in the global minibatch (the `Data` protocol).

    A mean over the rows of a minibatch divides by all that count, on all workers. Their numbers are known only where
    the examples are, so they are summed over workers: once a round, one number a minibatch, before the first step.

    Args:
        data: serves the examples; its own weights are not used.
        task: says how many rows of each example count.
    """

    def __init__(self, data: Data, task: Task, group: Group):
        self._data, self._task, self._group = data, task, group

    @property
    def num_classes(self) -> int:
        return self._data.num_classes

    def round(self, index: int) -> RoundBatches:
        train, val = self._data.round(index)
        batches = [*train, val]
        own = torch.stack([_num_rows(self._task, batch) for batch in batches]).to(batches[0].weights)
        *train, val = (
            _weighted(batch, total) for batch, total in zip(batches, self._group.sum(own).tolist(), strict=True)
        )
        return RoundBatches(train, val)

    def epoch(self, index: int) -> int:
        return self._data.epoch(index)

    def validation(self, epoch: int) -> Iterable[Batch]:
        return self._data.validation(epoch)

    def test(self) -> Iterable[Batch]:
        return self._data.test()


def _num_rows(task: Task, batch: Batch) -> Int[Tensor, ""]:
    """
    Raises:
        UserError: if the task cannot make anything of the targets.
    """
    try:
        return task.num_rows(batch.targets).sum()
    except UserError:
        raise
    except Exception as error:  # a task may be the user's own, and the targets are
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        raise UserError(
            f"task {task.name} cannot count the rows of its targets ({reason}); give those that it is for, or mend it."
        ) from error


def _weighted(batch: Batch, num_rows: float) -> Batch:
    """A minibatch of which nothing counts has no weight: its step is one of weight decay and momentum alone."""
    return batch._replace(weights=torch.full_like(batch.weights, 1 / num_rows if num_rows else 0.0))
