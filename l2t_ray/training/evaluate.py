"""How good a student is on data it does not learn from."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.core.student import outputs_of
from l2t_ray.interfaces import Batch, Group, Metrics, StudentState, Task, UserError
from l2t_ray.parallel.gather import gathered


@torch.no_grad()
def evaluate(student: FlatModule, state: StudentState, task: Task, batches: Iterable[Batch], group: Group) -> Metrics:
    """The task's metrics over all batches of all workers, with the running statistics of batch norm.

    Raises:
        UserError: if the task does not give what its `metrics` say.
    """
    metrics = task.summarise(scored(student, state, task, batches, group))
    missing = [metric.name for metric in task.metrics if metric.name not in metrics]
    if missing:
        raise UserError(
            f"summarise of the task {task.name} gives {', '.join(metrics) or 'nothing'}, and its `metrics` name "
            f"{missing[0]!r} too; give the same names, without a prefix such as test_."
        )
    return metrics


@torch.no_grad()
def scored(
    student: FlatModule,
    state: StudentState,
    task: Task,
    batches: Iterable[Batch],
    group: Group,
    *,
    look: Callable[[Batch, Any], None] = lambda batch, outputs: None,
) -> Tensor:
    """The totals of the task's scores over all batches of all workers.

    Args:
        look: is shown each batch, and what the student makes of it.
    """
    are_rows, scores = getattr(task, "scores_are_rows", False), []
    for batch in batches:
        outputs = outputs_of(student, state.theta, state.buffers, batch, training=False)
        look(batch, outputs)
        score = task.score(outputs, batch).double()
        scores = [*scores, score] if are_rows or not scores else [scores[0] + score]
    if not scores:
        raise ValueError("evaluate needs at least one batch, got none.")
    return gathered(torch.cat(scores), group)[0] if are_rows else group.sum(scores[0])
