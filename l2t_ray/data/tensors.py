"""Batches from tensors that are already in memory: for people who bring their own data."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from l2t_ray.data.counted import numpy_generator
from l2t_ray.interfaces import Batch, RoundBatches, UserError


class TensorData:
    """The `Data` protocol over a training and a validation set. Epochs are passes over the validation set.

    Args:
        train, validation: `(inputs [n, ...], labels [n])`; the test batches are the validation set.
        num_steps: K, training minibatches a round.
        batch_size, val_batch_size: their sizes, without replacement within a minibatch.
        seed: of every draw.

    Raises:
        UserError: if inputs and labels do not match, labels are no class numbers, a set is smaller than its batch, or
            a class is missing.
    """

    def __init__(
        self,
        train: tuple[Tensor, Tensor],
        validation: tuple[Tensor, Tensor],
        *,
        num_steps: int,
        batch_size: int,
        val_batch_size: int,
        seed: int,
        device: torch.device | str,
    ):
        for name, (inputs, labels), size in (
            ("train", train, batch_size),
            ("validation", validation, val_batch_size),
        ):
            if len(inputs) != len(labels):
                raise UserError(f"{name} has {len(inputs)} inputs but {len(labels)} labels; give one label each.")
            if len(inputs) < size:
                raise UserError(f"{name} has {len(inputs)} examples, fewer than a minibatch of {size}; lower the size.")
            _check_labels(name, labels)
        self.num_classes = int(train[1].max()) + 1
        if int(validation[1].max()) >= self.num_classes:
            raise UserError(
                f"validation has the label {int(validation[1].max())}, and train has classes 0 to "
                f"{self.num_classes - 1}; every class must be trained on."
            )
        missing = sorted(set(range(self.num_classes)) - set(validation[1].tolist()))
        if self.num_classes < 2 or missing:
            what = f"class {missing[0]} is absent from validation" if missing else "there are fewer than two classes"
            raise UserError(f"{what}; every class 0..C-1 of train must be validated on.")
        self._train = tuple(tensor.to(device) for tensor in train)
        self._validation = tuple(tensor.to(device) for tensor in validation)
        self._num_steps, self._batch_size, self._val_batch_size = num_steps, batch_size, val_batch_size
        self._seed, self._device = seed, device
        self._rounds_per_epoch = len(validation[0]) // val_batch_size

    def epoch(self, index: int) -> int:
        return index // self._rounds_per_epoch

    def round(self, index: int) -> RoundBatches:
        draw = numpy_generator(self._seed, "rows", index)
        train = [self._batch(self._train, draw, self._batch_size) for _ in range(self._num_steps)]
        return RoundBatches(train, self._batch(self._validation, draw, self._val_batch_size))

    def validation(self, epoch: int) -> Iterator[Batch]:
        del epoch  # the validation set never changes
        yield self._at(self._validation, np.arange(len(self._validation[0])))

    def test(self) -> Iterator[Batch]:
        return self.validation(0)

    def _batch(self, examples: tuple[Tensor, ...], draw: np.random.Generator, size: int) -> Batch:
        return self._at(examples, draw.choice(len(examples[0]), size, replace=False))

    def _at(self, examples: tuple[Tensor, ...], rows: np.ndarray) -> Batch:
        indices = torch.from_numpy(rows).to(self._device)
        inputs, labels = examples[0][indices], examples[1][indices]
        weights = torch.full((len(rows),), 1 / len(rows), device=self._device)
        return Batch(inputs, labels, weights, indices)


def _check_labels(name: str, labels: Tensor) -> None:
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise UserError(
            f"{name}: labels must be one int64 class number an example, got shape {tuple(labels.shape)} of "
            f"{labels.dtype}; for one-hot labels give labels.argmax(1)."
        )
    if int(labels.min()) < 0:
        raise UserError(f"{name}: labels must be at least 0, got {int(labels.min())}; leave such examples out.")
