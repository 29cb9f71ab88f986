"""Families of learned losses: what is done with a task's rows or terms, under weights phi that a teacher may change.

The paper's family reads class decisions two by two (`PairLoss`). Another combines the task's own terms with a few
numbers (`term_loss`). An objective, a teacher and an engine see no difference.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.core.loss.network import DynamicLossNetwork, memory_weight
from l2t_ray.core.student import cross_entropy, rows_of
from l2t_ray.interfaces import Metrics, Task, Terms


class RowLosses(NamedTuple):
    """A loss of each row, of whatever kind the rows are; the whole is the sum of weights times values."""

    values: Float[Tensor, " n"]
    weights: Float[Tensor, " n"]
    owner: Int[Tensor, " n"]


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


class PairLoss:
    """A loss network on class decisions (supplement, Sec. 2)."""

    def __init__(self, network: DynamicLossNetwork, task: Task):
        self.network, self._task = network, task

    @property
    def phi(self) -> Float[Tensor, " m"]:
        return self.network.phi.detach()

    @property
    def reads_memory(self) -> bool:
        return self.network.spec.memory is not None

    def losses(self, phi: Float[Tensor, " m"], terms: Terms, memory: Float[Tensor, "n c"] | None) -> RowLosses:
        rows = rows_of(terms, self._task)
        own_memory = None if memory is None else memory[rows.owner]
        values = self.network.losses_at(phi, rows.logits, rows.labels, own_memory)
        return RowLosses(values, rows.weights, rows.owner)

    def fixed(self, terms: Terms) -> Float[Tensor, " n"]:
        rows = rows_of(terms, self._task)
        return cross_entropy(rows.logits, rows.labels)

    def report(self, phi: Float[Tensor, " m"]) -> Metrics:
        return {"memory_weight": memory_weight(self.network.spec, phi).item()} if self.reads_memory else {}
