"""Sets of examples of any kind, for a task that knows what they are: words, sound, tables, and what else there is."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from l2t_ray.data.dataset import OpenedSet
from l2t_ray.data.examples import Examples
from l2t_ray.data.tensor_checks import as_inputs_and_targets, by_name, class_numbers
from l2t_ray.data.tensor_examples import TensorExamples
from l2t_ray.interfaces import UserError


@dataclass(frozen=True)
class ExampleSet:
    """Examples, in memory or read when they are asked for."""

    examples: Examples
    class_names: tuple[str, ...]
    content: str
    """Tells the examples from any others: a run goes on with these, and with no others."""
    labels: Int[np.ndarray, " n"] | None = None
    """The class of each example, where each is one row of its task; None: they have none."""

    @classmethod
    def of(cls, inputs: Any, targets: Any, class_names: Sequence[str]) -> "ExampleSet":
        """Of inputs and targets in memory, each a tensor, a NumPy array or several by name, an example a row. Targets
        that are one class number an example are its label.

        Raises:
            UserError: if inputs and targets do not match, or inputs are not finite.
        """
        inputs, targets = as_inputs_and_targets("a set of examples", (inputs, targets), are_labels=False)
        labels = class_numbers(targets, len(class_names))
        examples = TensorExamples("a set of examples", inputs, targets)
        return cls(examples, tuple(class_names), _digest(inputs, targets), labels)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def positions(self) -> Int[np.ndarray, " n"]:
        """Of each example in the set."""
        return np.arange(len(self))

    @property
    def names(self) -> None:
        """They have none."""

    def digest(self) -> str:
        """Tells this set from any other."""
        return hashlib.sha256(repr((self.class_names, self.content)).encode()).hexdigest()


@dataclass(frozen=True)
class ExampleDataset(OpenedSet):
    """Examples of any kind with what is to be learned of them."""

    train: ExampleSet
    test: ExampleSet
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    """They have no pixels."""

    @property
    def student_arguments(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}


def check_examples(where: str, examples: ExampleSet) -> None:
    """
    Raises:
        UserError: if a set's parts do not fit one another.
    """
    if not isinstance(examples.examples, Examples):
        raise UserError(
            f"{where} must hold examples with extreme_rows, draws, batch and a length (`Examples` in "
            f"l2t_ray/data/examples.py), got a {type(examples.examples).__name__}; ExampleSet.of makes them of tensors."
        )
    if not isinstance(examples.content, str) or not examples.content:
        raise UserError(f"content of {where} must be text that tells its examples from others, such as a checksum.")
    labels = examples.labels
    if labels is None:
        return
    if labels.dtype != np.int64 or labels.shape != (len(examples),):
        raise UserError(
            f"labels of {where} must be int64 [{len(examples)}], one an example, got {labels.dtype} of shape "
            f"{labels.shape}."
        )
    if labels.min() < 0 or labels.max() >= len(examples.class_names):
        strange = int(labels.min() if labels.min() < 0 else labels.max())
        raise UserError(f"{where} has the label {strange}, where {len(examples.class_names)} classes have names.")


def _digest(inputs: Any, targets: Any) -> str:
    total = hashlib.sha256()
    for part in (inputs, targets):
        for name, values in by_name(part).items():
            array = values.detach().cpu().contiguous()
            total.update(repr((name, str(array.dtype), tuple(array.shape))).encode())
            total.update(array.view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return total.hexdigest()
