"""The minibatches of a run on tensors that people bring."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from l2t_ray.assembly.source import Source
from l2t_ray.data.examples import Examples, Joined
from l2t_ray.data.splits import Policy, Split
from l2t_ray.data.tensor_checks import as_inputs_and_targets, check_same_form, count_classes
from l2t_ray.data.tensor_examples import TensorExamples, fits
from l2t_ray.interfaces import UserError
from l2t_ray.methods.parts import Labels
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import TrainingConfig

_AT_ONCE = 500
_PER_VAL_BATCH = 5
"""So many validation minibatches at once, and `_AT_ONCE` examples at most: without a graph each takes far less."""


class TensorSets:
    """A training, a validation and a test set of inputs with class numbers, made alike or refused.

    Args:
        train, validation, test: `(inputs, labels)`: inputs a tensor, a NumPy array, or several of them by name, an
            example a row; labels class numbers of any integer type.
        training: the sizes of the minibatches.
        device: where they are kept while they take a quarter of what is free there.

    Attributes:
        num_classes: as many as the labels of the training set need.

    Raises:
        UserError: if inputs and labels do not match or are not finite, labels are no class numbers, a set is smaller
            than its batch, or a class is in one set alone.
    """

    def __init__(
        self, train: Any, validation: Any, test: Any | None, training: TrainingConfig, *, device: torch.device
    ):
        self.train, self.validation = _examples("train", train), _examples("validation", validation)
        self.test = self.validation if test is None else _examples("test", test)
        for name, part, key in (
            ("train", self.train, "batch_size"),
            ("validation", self.validation, "val_batch_size"),
        ):
            if len(part) < (size := getattr(training, key)):
                raise UserError(f"{name} has {len(part)} examples, fewer than {key}={size}; lower {key}.")
        check_same_form(self.train.inputs, self.validation.inputs)
        if test is not None:
            check_same_form(self.train.inputs, self.test.inputs)
        self.num_classes = count_classes(self.train.targets, self.validation.targets)
        foreign = int(self.test.targets.max())
        if foreign >= self.num_classes:
            raise UserError(f"test has the label {foreign}, and train has classes 0 to {self.num_classes - 1}.")
        parts = {id(part): part for part in (self.train, self.validation, self.test)}.values()
        if fits([tensor for part in parts for tensor in part.tensors()], device):
            for part in parts:
                part.keep_on(device)

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


class TensorSource(Source):
    """Rows of the training set, and after them those of the validation set; in this process.

    Args:
        num_classes: those of the labels, or more, which have no examples.
    """

    def __init__(
        self, sets: TensorSets, training: TrainingConfig, *, num_classes: int, seed: int, device: torch.device
    ):
        num_train = len(sets.train)
        rows = np.arange(num_train + len(sets.validation))
        labels = np.concatenate([part.targets.cpu().numpy() for part in (sets.train, sets.validation)])
        split = Split(rows[:num_train], rows[num_train:])

        def examples(taught: Int[np.ndarray, " n"]) -> Examples:
            pieces = torch.from_numpy(taught).split([num_train, len(sets.validation)])
            return Joined(*(part.taught(own) for part, own in zip((sets.train, sets.validation), pieces, strict=True)))

        super().__init__(
            examples,
            sets.test,
            Labels(labels, labels, rows >= num_train, np.eye(num_classes), tuple(map(str, range(num_classes)))),
            Policy(lambda epoch: split, lasts=None),
            training,
            balance=labels,
            seed=seed,
            group=SingleProcess(),
            device=device,
            test_batch=min(_AT_ONCE, _PER_VAL_BATCH * training.val_batch_size),
        )


def _examples(name: str, given: Any) -> TensorExamples:
    return TensorExamples(name, *as_inputs_and_targets(name, given, are_labels=True))
