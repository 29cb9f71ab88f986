"""The minibatches of a run on tensors that people bring."""

import numpy as np
import torch
from jaxtyping import Int

from l2t_ray.assembly.source import ExamplesSource
from l2t_ray.data.examples import Examples
from l2t_ray.data.loader import RoundLoader
from l2t_ray.data.row_shares import RowShares
from l2t_ray.data.tensor_examples import TensorSets, test_batch_of
from l2t_ray.interfaces import Data, Task
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
        self._task = task
        num_train, num_rows = len(sets.train), len(sets.train) + len(sets.validation)
        labels = np.zeros(num_rows, dtype=np.int64)
        if task is None:
            parts = [part.targets for part in (sets.train, sets.validation)]
            labels = np.concatenate([part.cpu().numpy() for part in parts if part is not None])

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
        )

    def served(self, loader: RoundLoader) -> Data:
        return loader if self._task is None else RowShares(loader, self._task, SingleProcess())
