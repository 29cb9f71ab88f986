"""How good a student is on data it does not learn from."""

from collections.abc import Iterable

import torch

from l2t_ray.core.flat import FlatModule
from l2t_ray.core.student import outputs_of
from l2t_ray.interfaces import Batch, Group, Metrics, StudentState, Task


@torch.no_grad()
def evaluate(student: FlatModule, state: StudentState, task: Task, batches: Iterable[Batch], group: Group) -> Metrics:
    """The task's metrics over all batches of all workers, with the running statistics of batch norm."""
    totals = None
    for batch in batches:
        outputs = outputs_of(student, state.theta, state.buffers, batch, training=False)
        score = task.score(outputs, batch).double()
        totals = score if totals is None else totals + score
    if totals is None:
        raise ValueError("evaluate needs at least one batch, got none.")
    return task.summarise(group.sum(totals))
