"""What a task can show of its students, as plain data: marks on single examples, and charts of all of them.

Whoever draws them goes by their kinds, and never asks which task they are of.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from l2t_ray.interfaces import Batch


class ClassMap(NamedTuple):
    """A class for each pixel of an example."""

    classes: Int[np.ndarray, "h w"]
    ignore: int  # the number of pixels that do not count


class BoxMarks(NamedTuple):
    """Boxes on an example, x1, y1, x2, y2 in its pixels; answers by falling score."""

    corners: Float[np.ndarray, "k 4"]
    labels: Int[np.ndarray, " k"]
    scores: Float[np.ndarray, " k"] | None = None  # None: these are the truth
    crowd: Bool[np.ndarray, " k"] | None = None  # regions that do not count; None: there is none


Marks = ClassMap | BoxMarks


class ClassMatrix(NamedTuple):
    """How often an example or a pixel of a class (row) is answered with a class (column)."""

    counts: Int[np.ndarray, "c c"]


class ByClass(NamedTuple):
    """A fraction for each class that occurs, and for all of them."""

    name: str  # of the file
    title: str
    label: str
    values: Mapping[str, float]
    whole: tuple[str, float]


class Curves(NamedTuple):
    """Lines in the unit square, a panel for each by its title; the area under a line is what it comes to."""

    name: str  # of the file
    x_label: str
    y_label: str
    lines: Mapping[str, tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]]


Chart = ClassMatrix | ByClass | Curves


@runtime_checkable
class ShowsAnswers(Protocol):
    """A task with something to show. Outputs and batches are as for `Task.score`."""

    def truths(self, batch: Batch) -> Sequence[Marks]:
        """What is marked on each example of the batch."""
        ...

    def answers(self, outputs: Any, batch: Batch) -> Sequence[Marks]:
        """What a student says of each, as it is scored."""
        ...

    def charts(self, totals: Tensor) -> Sequence[Chart]:
        """
        Args:
            totals: as for `Task.summarise`.
        """
        ...


def first(values: Any, count: int) -> Any:
    """The first examples of outputs or of a part of a batch: of tensors, also inside of sequences and mappings."""
    if isinstance(values, Mapping):
        return {name: first(part, count) for name, part in values.items()}
    if isinstance(values, tuple | list):
        return type(values)(first(part, count) for part in values)
    return values[:count]
