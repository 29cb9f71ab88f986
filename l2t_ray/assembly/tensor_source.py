"""The minibatches of a run on tensors that people bring."""

import numpy as np
import torch
from jaxtyping import Int

from l2t_ray.assembly.source import ExamplesSource
from l2t_ray.data.examples import Examples
from l2t_ray.data.tensor_checks import class_numbers
from l2t_ray.data.tensor_examples import TensorSets, test_batch_of
from l2t_ray.interfaces import Task
from l2t_ray.methods.parts import Labels
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import TrainingConfig


class TensorSource(ExamplesSource):
    """Rows of the training set, and after them those of the validation set; in this process.

    Args:
        num_classes: those of the labels, or more, which have no examples.
        task: says how many rows an example's targets have; None: they are labels, one an example.
    """

    def __init__(
        self,
        sets: TensorSets,
        training: TrainingConfig,
        *,
        num_classes: int,
        seed: int,
        device: torch.device,
        task: Task | None = None,
    ):
        num_train, num_rows = len(sets.train), len(sets.train) + len(sets.validation)
        labels = _labels(sets, num_classes, task)

        def examples(taught: Int[np.ndarray, " n"]) -> Examples:
            return sets.both(torch.from_numpy(taught) if task is None else None)

        super().__init__(
            examples,
            sets.test,
            Labels(labels, labels, np.arange(num_rows) >= num_train, None, tuple(map(str, range(num_classes)))),
            sets.policy(),
            training,
            balance=labels,
            seed=seed,
            group=SingleProcess(),
            device=device,
            test_batch=test_batch_of(training.val_batch_size),
            task=task,
        )


def _labels(sets: TensorSets, num_classes: int, task: Task | None) -> Int[np.ndarray, " n"]:
    """The class of each row of both sets; zeros where a task's targets are something else."""
    labels = [class_numbers(part.targets, num_classes) for part in (sets.train, sets.validation)]
    found = [own for own in labels if own is not None]
    if task is not None and not (task.row_is_example and len(found) == len(labels)):
        return np.zeros(len(sets.train) + len(sets.validation), dtype=np.int64)
    return np.concatenate(found)
