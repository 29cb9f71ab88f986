"""What a loader asks of a set of examples, whatever an example is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

Draws = tuple[np.ndarray, ...]
"""What is drawn for the examples of a minibatch: arrays with one entry an example. Empty: nothing is."""


@runtime_checkable
class Examples(Protocol):
    """A set of examples, by row number. Nothing is drawn in `batch`: what is drawn comes from `draws`, for all workers.

    A set whose minibatches are put together by a rule of its own has a true attribute `collates`: each of a round's is
    then asked for by itself.

    Attributes:
        extreme_rows: examples to try a model on first, for derivatives are likeliest to be missing or to explode there.
    """

    @property
    def extreme_rows(self) -> Sequence[int]: ...

    def __len__(self) -> int: ...

    def draws(self, generator: np.random.Generator, size: int) -> Draws:
        """What is drawn for a whole minibatch of `size` examples, whichever they are."""
        ...

    def batch(self, rows: Int[np.ndarray, " n"], draws: Draws, device: torch.device) -> tuple[Any, Any]:
        """Inputs and targets on `device`, each a tensor or several by name, examples first.

        Args:
            draws: an entry for each row, taken from those of a whole minibatch; empty: the examples as they are.
        """
        ...


class Joined:
    """Two sets of the same form as one (the `Examples` protocol): the rows of the second follow those of the first."""

    def __init__(self, first: Examples, second: Examples):
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    @property
    def extreme_rows(self) -> Sequence[int]:
        return [*self.first.extreme_rows, *(len(self.first) + row for row in self.second.extreme_rows)]

    def draws(self, generator: np.random.Generator, size: int) -> Draws:
        return self.first.draws(generator, size) or self.second.draws(generator, size)

    def batch(self, rows: Int[np.ndarray, " n"], draws: Draws, device: torch.device) -> tuple[Any, Any]:
        is_second = rows >= len(self.first)
        if not is_second.any():
            return self.first.batch(rows, draws, device)
        if is_second.all():
            return self.second.batch(rows - len(self.first), draws, device)
        sides = [np.flatnonzero(~is_second), np.flatnonzero(is_second)]
        parts = [
            part.batch(rows[side] - start, tuple(values[side] for values in draws), device)
            for part, start, side in ((self.first, 0, sides[0]), (self.second, len(self.first), sides[1]))
        ]
        order = torch.from_numpy(np.argsort(np.concatenate(sides))).to(device)
        inputs, targets = (
            combined(lambda *tensors: torch.cat(tensors)[order], *two) for two in zip(*parts, strict=True)
        )
        return inputs, targets


class Undrawn:
    """Examples as they are, for which nothing is drawn (the `Examples` protocol)."""

    def __init__(self, examples: Examples):
        self._examples, self.extreme_rows = examples, examples.extreme_rows

    def __len__(self) -> int:
        return len(self._examples)

    def draws(self, generator: np.random.Generator, size: int) -> Draws:
        del generator, size
        return ()

    def batch(self, rows: Int[np.ndarray, " n"], draws: Draws, device: torch.device) -> tuple[Any, Any]:
        return self._examples.batch(rows, draws, device)


def combined(function: Callable[..., Tensor], *values: Any) -> Any:
    """The function of tensors, or of those of each name in mappings of them."""
    if isinstance(values[0], Mapping):
        return {name: function(*(value[name] for value in values)) for name in values[0]}
    return function(*values)


def pieces(values: Any, sizes: Sequence[int]) -> list[Any]:
    """A tensor, or each of several by name, split into parts of so many examples."""
    if isinstance(values, Mapping):
        cut = {name: value.split(list(sizes)) for name, value in values.items()}
        return [{name: parts[i] for name, parts in cut.items()} for i in range(len(sizes))]
    return list(values.split(list(sizes)))
