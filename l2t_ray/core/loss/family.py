"""Families of learned losses: what is done with a task's rows or terms, under weights phi that a teacher may change.

The paper's family reads class decisions two by two (`PairLoss`). Another combines the task's own terms with a few
numbers (`TermLoss`). An objective, a teacher and an engine see no difference, nor do a file, a page and a figure.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.interfaces import Metrics, Task, Terms


class RowLosses(NamedTuple):
    """A loss of each row, of whatever kind the rows are; the whole is the sum of weights times values."""

    values: Float[Tensor, " n"]
    weights: Float[Tensor, " n"]
    owner: Int[Tensor, " n"]
    rest: Float[Tensor, ""] | None = None  # what is minimised beside these rows; None: the task's `Terms.rest`


class Surface(NamedTuple):
    """A loss of pairs `[m, 2]` (p_true, p_other), to be drawn over both."""

    losses: Callable[[Float[Tensor, "m 2"]], Float[Tensor, " m"]]


class Bars(NamedTuple):
    """A number by name; where nothing was learned, each is `start`."""

    title: str
    numbers: Mapping[str, float]
    start: float
    column: str | None = None  # what stands before the names where `report` follows the numbers; None: it does not
    are_classes: bool = False  # the names are class numbers


class Curve(NamedTuple):
    """A line through these points, straight between them; where nothing was learned, the identity."""

    title: str
    x: Sequence[float]
    y: Sequence[float]
    column: str | None = None  # what stands before the number of a piece where `report` follows the slopes


LossPicture = Surface | Bars | Curve
"""What may be drawn of a loss, as plain data."""


@runtime_checkable
class LossFamily(Protocol):
    """A learned loss: a pure function of phi and of what the task gives.

    Attributes:
        phi: the weights that it begins with.
        reads_memory: it needs to be told what the student has said of each example so far.
    """

    @property
    def phi(self) -> Float[Tensor, " m"]: ...
    @property
    def reads_memory(self) -> bool: ...
    def losses(self, phi: Float[Tensor, " m"], terms: Terms, memory: Float[Tensor, "n c"] | None) -> RowLosses:
        """
        Args:
            memory: by example of the minibatch; None where there is none.
        """
        ...

    def fixed(self, terms: Terms) -> Float[Tensor, " n"]:
        """The fixed loss that it stands in for, of the same rows."""
        ...

    def report(self, phi: Float[Tensor, " m"]) -> Metrics:
        """Its numbers by column name, to be followed over the rounds."""
        ...


@runtime_checkable
class KeptFamily(LossFamily, Protocol):
    """A family whose losses outlive their training: they have a file, a page and pictures (`learned.LearnedLoss`).

    To be called, it is a `RowFamily` or a `CalledFamily` too.

    Attributes:
        family: what files call it (`learned.FAMILIES`).
        spec_type: the type of `spec`: a frozen dataclass of plain values, with `num_weights`.
        spec: everything about the loss but its weights.
    """

    family: ClassVar[str]
    spec_type: ClassVar[type]

    @property
    def spec(self) -> Any: ...
    @classmethod
    def of(cls, spec: Any) -> "KeptFamily":
        """The family that `spec` is of; where its phi begins does not count."""
        ...

    def check(self, task: Task, num_classes: int | None = None) -> None:
        """
        Raises:
            ValueError: in a sentence without a subject, if it is no loss for this task and so many classes.
        """
        ...

    def describe(self, phi: Float[Tensor, " m"]) -> str:
        """What it is and how it is used, in Markdown: the body of its page."""
        ...

    def pictures(self, phi: Float[Tensor, " m"]) -> Sequence[LossPicture]: ...


@runtime_checkable
class RowFamily(Protocol):
    """A family of losses of class decisions: in somebody's own loop it is called as `torch.nn.CrossEntropyLoss` is."""

    def row_losses(
        self,
        phi: Float[Tensor, " m"],
        logits: Float[Tensor, "n c"],
        labels: Int[Tensor, " n"],
        memory: Float[Tensor, "n c"] | None = None,
    ) -> Float[Tensor, " n"]:
        """
        Args:
            labels: in `[0, c)`.
            memory: of each row; None: there is none. Given where `reads_memory` alone.
        """
        ...


@runtime_checkable
class CalledFamily(Protocol):
    """A family of other losses; what is given to them in somebody's own loop is the family's affair."""

    def loss(self, phi: Float[Tensor, " m"], *given: Any, **more: Any) -> Float[Tensor, ""]: ...
