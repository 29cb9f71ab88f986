"""Batches from tensors that are already in memory: for people who bring their own data."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from l2t_ray.data.counted import numpy_generator
from l2t_ray.data.tensor_checks import Examples, as_examples, check_same_form, count_classes, extremes
from l2t_ray.data.tensor_examples import fits
from l2t_ray.interfaces import Batch, RoundBatches, UserError

_AT_ONCE = 500
_PER_VAL_BATCH = 5
"""So many validation minibatches at once, and `_AT_ONCE` examples at most: without a graph each takes far less."""


class TensorData:
    """The `Data` protocol over a training and a validation set. Epochs are passes over the validation set.

    Args:
        train, validation: `(inputs [n, ...], labels [n])`, tensors or NumPy arrays; labels of any integer type. The
            test batches are the validation set.
        num_steps: K, training minibatches a round.
        batch_size, val_batch_size: their sizes, without replacement within a minibatch.
        seed: of every draw.
        device: where batches are. The sets are kept there while they take a quarter of what is free, and else stay.

    Attributes:
        num_classes: as many as the training labels need, or more (`widen`).
        num_train: training examples.
        extremes: of the training inputs.

    Raises:
        UserError: if inputs and labels do not match or are not finite, labels are no class numbers, a set is smaller
            than its batch, or a class is in one set alone.
    """

    def __init__(
        self,
        train: Any,
        validation: Any,
        *,
        num_steps: int,
        batch_size: int,
        val_batch_size: int,
        seed: int,
        device: torch.device | str,
    ):
        self._train, self._validation = as_examples("train", train), as_examples("validation", validation)
        for name, (inputs, _), key, size in (
            ("train", self._train, "batch_size", batch_size),
            ("validation", self._validation, "val_batch_size", val_batch_size),
        ):
            if len(inputs) < size:
                raise UserError(f"{name} has {len(inputs)} examples, fewer than {key}={size}; lower {key}.")
        check_same_form(self._train[0], self._validation[0])
        self.num_classes = count_classes(self._train[1], self._validation[1])
        self.num_train = len(self._train[1])
        self.extremes = extremes("train", self._train[0])
        self._val_extremes = extremes("validation", self._validation[0])
        if fits(self._train + self._validation, torch.device(device)):
            self._train, self._validation = (
                (inputs.to(device), labels.to(device)) for inputs, labels in (self._train, self._validation)
            )
        self._num_steps, self._batch_size, self._val_batch_size = num_steps, batch_size, val_batch_size
        self._seed, self._device = seed, device
        self._at_once = min(_AT_ONCE, _PER_VAL_BATCH * val_batch_size)
        self._rounds_per_epoch = len(self._validation[0]) // val_batch_size

    def widen(self, num_outputs: int) -> None:
        """Takes a model's outputs for the classes: those beyond the labels have no examples.

        Raises:
            UserError: if there are fewer outputs than classes.
        """
        if num_outputs < self.num_classes:
            raise UserError(
                f"train has the label {self.num_classes - 1}, and model gives {num_outputs} outputs, for classes 0 to "
                f"{num_outputs - 1}; give model {self.num_classes} outputs, or number the classes from 0."
            )
        self.num_classes = num_outputs

    def epoch(self, index: int) -> int:
        return index // self._rounds_per_epoch

    def round(self, index: int) -> RoundBatches:
        draw = numpy_generator(self._seed, "rows", index)
        train = [self._drawn(self._train, draw, self._batch_size) for _ in range(self._num_steps)]
        return RoundBatches(train, self._drawn(self._validation, draw, self._val_batch_size))

    def dry_round(self) -> RoundBatches:
        """Two steps and their validation minibatch to try things on, with the extreme examples of both sets in them."""
        draw = numpy_generator(self._seed, "dry round")

        def batch(examples: Examples, size: int, rows: list[int]) -> Batch:
            others = np.setdiff1d(draw.choice(len(examples[0]), size, replace=False), rows)
            return self._at(examples, np.concatenate((rows, others)).astype(np.int64)[:size])

        train = batch(self._train, self._batch_size, self.extremes.rows)
        return RoundBatches([train, train], batch(self._validation, self._val_batch_size, self._val_extremes.rows))

    def validation(self, epoch: int) -> Iterator[Batch]:
        del epoch  # the validation set never changes
        return self._in_order(self._validation)

    def test(self) -> Iterator[Batch]:
        return self._in_order(self._validation)

    def training_examples(self) -> Iterator[Batch]:
        """All of them with the labels that they were given, in order."""
        return self._in_order(self._train)

    def _in_order(self, examples: Examples) -> Iterator[Batch]:
        total = len(examples[0])
        for start in range(0, total, self._at_once):
            batch = self._at(examples, np.arange(start, min(start + self._at_once, total)))
            yield batch._replace(weights=torch.full_like(batch.weights, 1 / total))

    def _drawn(self, examples: Examples, draw: np.random.Generator, size: int) -> Batch:
        return self._at(examples, draw.choice(len(examples[0]), size, replace=False))

    def _at(self, examples: Examples, rows: np.ndarray) -> Batch:
        indices = torch.from_numpy(rows)
        here = indices.to(examples[0].device)
        inputs, labels = examples[0][here].to(self._device), examples[1][here].to(self._device)
        weights = torch.full((len(rows),), 1 / len(rows), device=self._device)
        return Batch(inputs, labels, weights, indices.to(self._device))
