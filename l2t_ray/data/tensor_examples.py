"""Tensors that are in memory, as examples and as a loader of all that training needs."""

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from l2t_ray.data.examples import Draws, Examples, Joined, combined
from l2t_ray.data.item_examples import ItemExamples, items_of
from l2t_ray.data.loader import RoundLoader
from l2t_ray.data.sampler import RoundSampler
from l2t_ray.data.splits import Policy, Split
from l2t_ray.data.tensor_checks import (
    as_inputs_and_targets,
    by_name,
    check_same_form,
    checksum_of,
    count_classes,
    extremes,
)
from l2t_ray.interfaces import UserError

_DEVICE_SHARE = 0.25
_AT_ONCE = 500
_PER_VAL_BATCH = 5
"""So many validation minibatches at once, and `_AT_ONCE` examples at most: without a graph each takes far less."""


class TensorExamples:
    """Serves rows of tensors (the `Examples` protocol); nothing is drawn.

    Args:
        inputs, targets: a tensor or several by name, of any type and on any device, one row an example.

    Attributes:
        largest: of the inputs' values, by size.
        has_one_shape: inputs have, whichever minibatch they are in.

    Raises:
        UserError: if an input has a value that is not finite; `name` is what its user calls the set.
    """

    has_one_shape = True

    def __init__(self, name: str, inputs: Any, targets: Any):
        self.inputs, self.targets = inputs, targets
        found = [extremes(name, values) for values in by_name(inputs).values()]
        self.extreme_rows: Sequence[int] = sorted({row for each in found for row in each.rows})
        self.largest = max(each.largest for each in found)

    def __len__(self) -> int:
        return len(next(iter(by_name(self.inputs).values())))

    @property
    def form(self) -> tuple[Any, Any]:
        """Inputs and targets, by which sets are compared."""
        return self.inputs, self.targets

    def taught(self, targets: Tensor) -> "TensorExamples":
        """The same inputs with other targets."""
        other = copy(self)
        other.targets = targets.to(next(iter(by_name(self.targets).values())).device)
        return other

    def keep_on(self, device: torch.device) -> None:
        self.inputs, self.targets = (combined(lambda v: v.to(device), part) for part in (self.inputs, self.targets))

    def checksum(self) -> str:
        """Of inputs and targets, wherever they are."""
        return checksum_of(self.form)

    def tensors(self) -> list[Tensor]:
        return [*by_name(self.inputs).values(), *by_name(self.targets).values()]

    def draws(self, generator: np.random.Generator, size: int) -> Draws:
        del generator, size
        return ()

    def batch(self, rows: Int[np.ndarray, " n"], draws: Draws, device: torch.device) -> tuple[Any, Any]:
        del draws
        here = torch.from_numpy(rows)

        def gathered(values: Tensor) -> Tensor:
            return values[here.to(values.device)].to(device)

        return combined(gathered, self.inputs), combined(gathered, self.targets)


class TensorSets:
    """A training, a validation and a test set of inputs with targets, made alike or refused.

    Args:
        train, validation, test: `(inputs, targets)`: each a tensor, a NumPy array, or several of them by name, an
            example a row; or a `Dataset` or `DataLoader` of such pairs (`item_examples.py`). `test=None`: the
            validation set.
        batch_size, val_batch_size: of the minibatches.
        device: where they are kept while they take a quarter of what is free there.
        num_classes: of targets that are no class numbers; None: they are class numbers, of any integer type.

    Attributes:
        num_classes: as many as the labels of the training set need, or those that were given.

    Raises:
        UserError: if inputs and targets do not match or are not finite, labels are no class numbers, a set is smaller
            than its batch, or a class is in one set alone.
    """

    def __init__(
        self,
        train: Any,
        validation: Any,
        test: Any | None = None,
        *,
        batch_size: int,
        val_batch_size: int,
        device: torch.device,
        num_classes: int | None = None,
    ):
        are_labels = num_classes is None

        def examples(name: str, given: Any) -> TensorExamples | ItemExamples:
            if (items := items_of(name, given)) is not None:
                return ItemExamples(items, are_labels=are_labels)
            return TensorExamples(name, *as_inputs_and_targets(name, given, are_labels=are_labels))

        self.train, self.validation = examples("train", train), examples("validation", validation)
        self.test = self.validation if test is None else examples("test", test)
        for name, part, key, size in (
            ("train", self.train, "batch_size", batch_size),
            ("validation", self.validation, "val_batch_size", val_batch_size),
        ):
            if len(part) < size:
                raise UserError(f"{name} has {len(part)} examples, fewer than {key}={size}; lower {key}.")
        self._check_form(self.validation, "validation", are_labels=are_labels)
        if test is not None:
            self._check_form(self.test, "test", are_labels=True)
        if num_classes is None:
            assert self.train.targets is not None and self.validation.targets is not None
            self.num_classes = count_classes(self.train.targets, self.validation.targets)
            assert self.test.targets is not None
            if (foreign := int(self.test.targets.max())) >= self.num_classes:
                raise UserError(
                    f"test has the label {foreign}, and train has classes 0 to {self.num_classes - 1}; every class "
                    "must be trained on."
                )
        else:
            self.num_classes = num_classes
        parts = [part for part in (self.train, self.validation, self.test) if isinstance(part, TensorExamples)]
        parts = {id(part): part for part in parts}.values()
        if fits([tensor for part in parts for tensor in part.tensors()], device):
            for part in parts:
                part.keep_on(device)

    def _check_form(self, other: "TensorExamples | ItemExamples", name: str, *, are_labels: bool) -> None:
        """Of the training set and this one: the inputs', and that of targets that are no labels."""
        has_one_shape = self.train.has_one_shape and other.has_one_shape
        compared = ("inputs",) if are_labels else ("inputs", "targets")
        for what, first, second in zip(compared, self.train.form, other.form, strict=False):
            check_same_form(first, second, what, name, has_one_shape=has_one_shape)

    def both(self, labels: Tensor | None = None) -> Examples:
        """The rows of the validation set after those of the training set.

        Args:
            labels: what they are taught with; None: with what they have.
        """
        parts: list[Any] = [self.train, self.validation]
        if labels is not None:
            pieces = labels.split([len(part) for part in parts])
            parts = [part.taught(own) for part, own in zip(parts, pieces, strict=True)]
        if all(isinstance(part, ItemExamples) for part in parts):
            return parts[0].followed_by(parts[1])
        return Joined(*parts)

    def policy(self) -> Policy:
        """The rows of the validation set are numbered on from those of the training set; the same in every epoch."""
        rows = np.arange(len(self.train) + len(self.validation))
        split = Split(rows[: len(self.train)], rows[len(self.train) :])
        return Policy(lambda epoch: split, lasts=None)

    def check_outputs(self, num_outputs: int) -> None:
        """
        Raises:
            UserError: if a model gives fewer outputs than there are classes.
        """
        if num_outputs < self.num_classes:
            raise UserError(
                f"train has the label {self.num_classes - 1}, and model gives {num_outputs} outputs, for classes 0 to "
                f"{num_outputs - 1}; give model {self.num_classes} outputs, or number the classes from 0."
            )


def test_batch_of(val_batch_size: int) -> int:
    """How many examples are evaluated together."""
    return min(_AT_ONCE, _PER_VAL_BATCH * val_batch_size)


def loader_of_tensors(
    train: Any,
    validation: Any,
    *,
    num_steps: int,
    batch_size: int,
    val_batch_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    num_classes: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> RoundLoader:
    """Serves two sets in memory; the test batches are the validation set.

    Rows of the validation set are numbered on from those of the training set.

    Args:
        train, validation: `(inputs, targets)`, each a tensor, a NumPy array or several by name. The inputs of both
            sets have the same form.
        num_steps, batch_size, val_batch_size, seed: as in `RoundSampler`.
        device: where batches are. The sets are kept there while they take a quarter of what is free, and else stay.
        num_classes: of targets that are no class numbers; None: they are class numbers, and as many as they need.

    Raises:
        UserError: if inputs and targets do not match or are not finite, labels are no class numbers, a set is smaller
            than its batch, or a class is in one set alone.
    """
    device = torch.device(device)
    sets = TensorSets(
        train,
        validation,
        batch_size=batch_size,
        val_batch_size=val_batch_size,
        device=device,
        num_classes=num_classes,
    )
    both = sets.both()
    sampler = RoundSampler(
        sets.policy(),
        seed=seed,
        num_steps=num_steps,
        train_batch=batch_size,
        val_batch=val_batch_size,
    )
    return RoundLoader(
        *(both, both, sets.test),
        sampler,
        seed=seed,
        num_classes=sets.num_classes,
        rank=rank,
        world_size=world_size,
        device=device,
        test_batch=test_batch_of(val_batch_size),
    )


def fits(tensors: Sequence[Tensor], device: torch.device) -> bool:
    """Whether the tensors take no more than a quarter of a GPU's free memory."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return sum(tensor.nbytes for tensor in tensors) <= _DEVICE_SHARE * free
