"""Items of a `torch.utils.data.Dataset`, as examples: read when they are asked for, and not kept.

What an item draws (a random crop, a flip) comes from the process's global streams. Here these are put to a place of
their own for each item of each minibatch, so that a round has the same examples whenever it is asked for, and a run
that is resumed those of the undisturbed one. Generators that a dataset keeps for itself are beyond that.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)

from l2t_ray.bilevel.draws import begun_from, unmoved_draws
from l2t_ray.data.counted import torch_seed
from l2t_ray.data.examples import Draws, combined
from l2t_ray.data.tensor_checks import as_inputs_and_targets, bounds, by_name, checksum_of, extremes_within
from l2t_ray.interfaces import UserError

_AT_ONCE = 64
"""So many are read together in the first pass: images of an ordinary size are 40 MB then."""
_CPU = torch.device("cpu")
_LABELS = ("labels", "label")


@dataclass(frozen=True)
class Items:
    """What a dataset or a loader says of its items.

    Attributes:
        name: what its user calls it.
        dataset: gives item i.
        collate: makes inputs and targets of a list of items.
        batch_size: of the loader; None: it has none.
    """

    name: str
    dataset: Any
    collate: Callable[[list[Any]], Any]
    batch_size: int | None

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, rows: Int[np.ndarray, " n"], seeds: Sequence[int] | np.ndarray | None = None) -> Any:
        """A minibatch as the collate function makes it; what its items draw follows from their seeds.

        Args:
            seeds: in [0, 2^63), of each item; None: they are only looked at, and the same each time.

        Raises:
            UserError: if an item cannot be read, or not put into a minibatch.
        """
        seeds, items = _seeds(rows) if seeds is None else seeds, []
        with unmoved_draws(_CPU):
            for row, seed in zip(rows.tolist(), seeds, strict=True):
                begun_from(int(seed), _CPU)
                try:
                    items.append(self.dataset[row])
                except Exception as error:
                    raise UserError(
                        f"{self.name}[{row}] cannot be read: {_reason(error)}; mend the dataset, or leave that item "
                        "out, as with torch.utils.data.Subset."
                    ) from error
            try:
                return _pair(self.collate(items))
            except Exception as error:
                raise UserError(
                    f"items of {self.name} cannot be put into a minibatch: {_reason(error)}; let each be (input, "
                    "target), tensors of one shape (of an image, by a transform), or give a DataLoader with a "
                    "collate_fn."
                ) from error

    def inputs_in_order(self, batch_size: int) -> Iterator[Any]:
        """Inputs alone, minibatch by minibatch, whether or not items have targets."""
        for rows in _in_order(len(self), batch_size):
            minibatch = self.read(rows)
            yield minibatch[0] if isinstance(minibatch, tuple | list) and len(minibatch) in (1, 2) else minibatch


class ItemExamples:
    """Serves the items of a map-style dataset (the `Examples` protocol).

    All are read once at first, for their labels and for values that cannot be trained on.

    Args:
        items: of the set.
        are_labels: the targets have to be class numbers.

    Attributes:
        largest: of the inputs' values, by size.
        form: inputs and targets of a few examples.
        targets: class numbers, from the first reading; None: targets are of another kind, and read with the inputs.
        collates: a minibatch is put together by itself, and not with others of its round.

    Raises:
        UserError: if there are none, one cannot be read, minibatches are not inputs and targets, labels are no class
            numbers, or a value is not finite.
    """

    collates = True

    def __init__(self, items: Items, *, are_labels: bool):
        self._items = items
        self.has_one_shape = items.collate is default_collate
        if len(items) == 0:
            raise UserError(f"{items.name} is empty; give at least one example of each class.")
        labels, extents, digest = [], dict[str, list[tuple[Tensor, Tensor]]](), hashlib.sha256()
        for rows in _in_order(len(items), _AT_ONCE):
            inputs, targets = self._checked(rows, are_labels=are_labels)
            for key, values in by_name(inputs).items():
                extents.setdefault(key, []).append(bounds(values))
            labels.append(targets)
            digest.update(checksum_of((inputs, targets)).encode())
            if rows[0] == 0:
                self.form = inputs, targets
        self._checksum = digest.hexdigest()
        self.targets: Tensor | None = torch.cat(labels) if all(map(_are_numbers, labels)) else None
        extremes = [extremes_within(items.name, parts) for parts in extents.values()]
        self.extreme_rows: Sequence[int] = sorted({row for each in extremes for row in each.rows})
        self.largest = max(each.largest for each in extremes)

    def __len__(self) -> int:
        return len(self._items)

    def taught(self, targets: Tensor) -> "ItemExamples":
        """The same inputs with other labels."""
        other = copy(self)
        other.targets = targets
        return other

    def followed_by(self, other: "ItemExamples") -> "ItemExamples":
        """Both as one, put together by this one's rule."""
        both = copy(self)
        both._items = replace(self._items, dataset=ConcatDataset([self._items.dataset, other._items.dataset]))
        both.extreme_rows = [*self.extreme_rows, *(len(self) + row for row in other.extreme_rows)]
        own = [part for part in (self.targets, other.targets) if part is not None]
        both.targets = torch.cat(own) if len(own) == 2 else None
        return both

    def checksum(self) -> str:
        """Of inputs and targets, as they are where nothing is drawn."""
        return self._checksum

    def draws(self, generator: np.random.Generator, size: int) -> Draws:
        """A seed for each item."""
        return (generator.integers(0, 2**63, size),)

    def batch(self, rows: Int[np.ndarray, " n"], draws: Draws, device: torch.device) -> tuple[Any, Any]:
        inputs, targets = self._items.read(rows, draws[0] if draws else None)
        if self.targets is not None:
            targets = self.targets[torch.from_numpy(rows)]

        def moved(values: Any) -> Tensor:
            return torch.as_tensor(values).to(device, non_blocking=True)

        return combined(moved, inputs), combined(moved, targets)

    def _checked(self, rows: Int[np.ndarray, " n"], *, are_labels: bool) -> tuple[Any, Any]:
        name = f"a minibatch of {self._items.name}"
        inputs, targets = as_inputs_and_targets(name, self._items.read(rows), are_labels=are_labels)
        count = len(next(iter(by_name(inputs).values())))
        if count != len(rows):
            raise UserError(f"{name} has {count} examples of {len(rows)} items; let the collate_fn make one of each.")
        return inputs, targets


def items_of(name: str, given: Any) -> Items | None:
    """What is given as a dataset or a loader; None: it is neither.

    Raises:
        UserError: if its items cannot be asked for by number, or are drawn in a way that cannot be repeated here.
    """
    if isinstance(given, DataLoader):
        return _of_loader(name, given)
    if isinstance(given, tuple | list | str | Mapping | Tensor | np.ndarray):
        return None
    if isinstance(given, IterableDataset):
        _refuse_iterable(name, given)
    if isinstance(given, Dataset) or (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        if not hasattr(given, "__len__"):
            raise UserError(f"{name} is a {type(given).__name__} without a length; give it a __len__.")
        return Items(name, given, default_collate, None)
    return None


def batch_size_of(given: Any, share: float = 1.0) -> int | None:
    """As a loader has it, and at most this share of its examples; None: it has none, or this is no loader."""
    batches = given.batch_sampler if isinstance(given, DataLoader) else None
    if not isinstance(batches, BatchSampler) or not hasattr(given.dataset, "__len__"):
        return None
    return max(1, min(batches.batch_size, int(share * len(given.dataset))))  # pyright: ignore[reportArgumentType]


def _of_loader(name: str, loader: DataLoader) -> Items:
    dataset, batches = loader.dataset, loader.batch_sampler
    if isinstance(dataset, IterableDataset):
        _refuse_iterable(name, dataset)
    if type(batches) is not BatchSampler:
        what = "no batch size" if batches is None else f"a {type(batches).__name__}"
        raise UserError(
            f"{name} is a DataLoader with {what}, and fit makes minibatches of its own, which can be drawn again; give "
            "the loader a batch_size, or give the dataset."
        )
    sampler: Any = batches.sampler
    if type(sampler) is SubsetRandomSampler:
        dataset = Subset(dataset, [int(row) for row in sampler.indices])
    elif type(sampler) is not SequentialSampler and not _is_shuffle(sampler, dataset):
        raise UserError(
            f"{name} is a DataLoader with a {type(sampler).__name__}, and fit draws each example as often as any "
            "other; give the loader shuffle=True, or give the dataset."
        )
    return Items(name, dataset, loader.collate_fn, batches.batch_size)


def _is_shuffle(sampler: Any, dataset: Any) -> bool:
    return type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(dataset)


def _refuse_iterable(name: str, dataset: Any) -> None:
    raise UserError(
        f"{name} is an IterableDataset ({type(dataset).__name__}), and examples are asked for by number, in many "
        "orders; give a dataset with __getitem__ and __len__, such as list(dataset) in a class of your own."
    )


def _pair(minibatch: Any) -> Any:
    """Inputs and targets, where a minibatch has its labels among the inputs, by name."""
    if isinstance(minibatch, Mapping):
        for key in _LABELS:
            if key in minibatch:
                return {name: values for name, values in minibatch.items() if name != key}, minibatch[key]
    return minibatch


def _are_numbers(targets: Any) -> bool:
    return isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point()


def _in_order(count: int, size: int) -> list[Int[np.ndarray, " n"]]:
    return [np.arange(start, end) for start, end in pairwise([*range(0, count, size), count])]


def _seeds(rows: Int[np.ndarray, " n"]) -> list[int]:
    """Of examples that are only looked at: they are the same each time."""
    return [torch_seed(0, "item", row) for row in rows.tolist()]


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0].rstrip('.')[:200]}"
