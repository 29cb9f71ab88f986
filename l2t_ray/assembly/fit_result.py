"""What `fit` gives back."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.core.noise_estimate import NoiseEstimate
from l2t_ray.core.suspects import Suspects
from l2t_ray.data.examples import combined
from l2t_ray.data.item_examples import items_of
from l2t_ray.data.tensor_checks import as_tensors, by_name
from l2t_ray.interfaces import UserError
from l2t_ray.training.explain import DryPlace, Words, explained
from l2t_ray.training.user_module import answer, in_evaluation_mode

if TYPE_CHECKING:
    import pandas

_AT_ONCE = 500


@dataclass(frozen=True, repr=False)
class Fit:
    """What `fit` gives back.

    Attributes:
        model: trained, in evaluation mode, where the model was that `fit` was given.
        loss: that it was trained with at the end; None: the method learns none.
        rows: the metrics of each round, as `history` has them in a table.
        noise: the newest estimate of the label noise, with its standard errors; None: there was none.
        suspected: what `suspects` makes a table of; None: the method cannot say.
        are_logits: the model's outputs are logits `[n, c]`, and what it is asked for is a class.
        num_rounds: that `model` was trained for.
        stopped: why the training ended before its last round; None: it did not.
    """

    model: nn.Module
    loss: LearnedLoss | None
    rows: list[dict[str, Any]]
    noise: NoiseEstimate | None
    suspected: Suspects | None = None
    are_logits: bool = True
    num_rounds: int = 0
    stopped: str | None = None

    def __repr__(self) -> str:
        measured = {name: value for row in self.rows for name, value in row.items() if name.startswith("test_")}
        parts = [f"{self.num_rounds} rounds"]
        parts += [f"{name}={value:.4g}" for name, value in measured.items()]
        parts += [] if self.stopped is None else [f"stopped: {self.stopped}"]
        return f"Fit({type(self.model).__name__}, {', '.join(parts)})"

    @property
    def history(self) -> "pandas.DataFrame":
        """A row for each round, a column for each metric; NaN where one was not measured in that round."""
        from pandas import DataFrame  # it takes a while to import, and training needs it nowhere

        return DataFrame(self.rows)

    @property
    def noise_matrix(self) -> Float[np.ndarray, "c c"] | None:
        """The probability of each given label (column) for each true class (row); rows add up to 1. None: the noise
        was not estimated."""
        return None if self.noise is None else self.noise.channel.double().cpu().numpy()

    def predict(self, inputs: Any, *, batch_size: int = _AT_ONCE) -> Any:
        """The likeliest class of each example.

        Args:
            inputs: a tensor, NumPy array or table, several by name, a `Dataset` or a `DataLoader`, whose targets are
                passed over; in the order of the examples.
            batch_size: so many examples are moved to the model's device and evaluated at once.

        Returns:
            Class numbers `[n]`, int64: a NumPy array for arrays and tables, and else a tensor on the CPU.

        Raises:
            UserError: if the model cannot be evaluated on the inputs, or its outputs are no logits.
        """
        if not self.are_logits:
            raise UserError("predict() needs logits [n, classes], and this task has other outputs; take outputs().")
        classes = self.outputs(inputs, batch_size=batch_size).argmax(dim=1)
        first = next(iter(inputs.values())) if isinstance(inputs, Mapping) and inputs else inputs
        return classes.numpy() if isinstance(first, np.ndarray) or hasattr(first, "to_numpy") else classes

    def outputs(self, inputs: Any, *, batch_size: int = _AT_ONCE) -> Any:
        """What the model gives for each example, on the CPU: logits `[n, c]`, or what the task's outputs are.

        Args, Raises:
            As in `predict`.
        """
        device = next(self.model.parameters()).device
        parts, batches = [], _batches(inputs, batch_size)
        with torch.inference_mode(False), torch.no_grad(), in_evaluation_mode(self.model):
            for batch in batches:
                here = combined(lambda values: values.to(device), batch)
                place = DryPlace("evaluated", "predict()", "batch_size", here, next(self.model.parameters()).dtype)
                with explained(Words(), place):
                    parts.append(tree_map(_on_cpu, answer(self.model, here)))
        return tree_map(lambda *own: torch.cat(own), *parts)

    def suspects(self) -> "pandas.DataFrame":
        """The training labels, the most suspicious first, by what the model said of each example while it trained.

        Returns:
            A row for each training example, with the columns `index` (its place in `train`), `given_label`,
            `suggested_label` (the likeliest class; the given one where no other is likelier) and `score`: the
            probability that the label is wrong, by the model's answers and the noise that was estimated. Higher is
            worse, other than in cleanlab. A model that has learned its labels by heart thinks too many right. Where
            no noise was estimated it is the share of the model's answers that are not for the label, which ranks
            labels and is no such probability. NaN, at the end: an example that was never drawn.

        Raises:
            UserError: if the method remembers nothing of its examples.
        """
        found = self.suspected
        if found is None:
            raise UserError(
                "suspects() needs a method that remembers what the model said of each example, and this one does not; "
                'take method="recommended", or a loss network with memory.'
            )
        from pandas import DataFrame

        return DataFrame(
            {
                "index": found.places.numpy(),
                "given_label": found.given.numpy(),
                "suggested_label": found.suggested.numpy(),
                "score": found.scores.numpy(),
            }
        )


def _batches(inputs: Any, size: int) -> Iterator[Any]:
    if not isinstance(size, int) or size < 1:
        raise UserError(f"batch_size must be a whole number of at least 1, got {size!r}.")
    items = None if hasattr(inputs, "to_numpy") else items_of("inputs", inputs)
    if items is not None:
        for batch in items.inputs_in_order(size):
            yield as_tensors("a minibatch of inputs", batch)
        return
    tensors = as_tensors("inputs", inputs)
    count = min(len(values) for values in by_name(tensors).values())
    for start in range(0, max(1, count), size):
        yield combined(lambda values, start=start: values[start : start + size], tensors)


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value
