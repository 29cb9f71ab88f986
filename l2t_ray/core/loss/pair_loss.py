"""The paper's family of losses: a loss network on class decisions (supplement, Sec. 2)."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.core.loss.channel import Channel
from l2t_ray.core.loss.family import Picture, RowLosses, Surface
from l2t_ray.core.loss.memory import MemoryTerm
from l2t_ray.core.loss.network import FAMILY, DynamicLossNetwork, LossNetworkSpec
from l2t_ray.core.loss.part import part_sizes
from l2t_ray.core.student import cross_entropy, rows_of
from l2t_ray.interfaces import Metrics, Task, Terms


class PairLoss:
    """A loss network, with its parts, as a family (`family.KeptFamily`).

    Args:
        task: that the rows are of; None: nobody knows.
    """

    family: ClassVar[str] = FAMILY
    spec_type: ClassVar[type] = LossNetworkSpec

    def __init__(self, network: DynamicLossNetwork, task: Task | None = None):
        self.network, self._task = network, task

    @classmethod
    def of(cls, spec: LossNetworkSpec) -> "PairLoss":
        return cls(DynamicLossNetwork(**asdict(spec)))

    @property
    def phi(self) -> Float[Tensor, " m"]:
        return self.network.phi.detach()

    @property
    def spec(self) -> LossNetworkSpec:
        return self.network.spec

    @property
    def groups(self) -> dict[str, int]:
        """How many weights each part has, in the order of phi."""
        return part_sizes(self.spec.parts)

    @property
    def reads_memory(self) -> bool:
        return isinstance(self.spec.parts.memory, MemoryTerm)

    @property
    def has_channel(self) -> bool:
        return isinstance(self.spec.parts.channel, Channel)

    def shift_to(self, channel: Float[Tensor, "c c"], phi: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """What to add to phi so that its channel of label noise becomes this one (`network.LossParts`)."""
        return self.spec.parts.shift_to(channel, phi)

    def losses(self, phi: Float[Tensor, " m"], terms: Terms, memory: Float[Tensor, "n c"] | None) -> RowLosses:
        rows = rows_of(terms, self._task)
        own_memory = None if memory is None else memory[rows.owner]
        values = self.network.losses_at(phi, rows.logits, rows.labels, own_memory)
        return RowLosses(values, rows.weights, rows.owner, rows.rest)

    def fixed(self, terms: Terms) -> Float[Tensor, " n"]:
        rows = rows_of(terms, self._task)
        return cross_entropy(rows.logits, rows.labels)

    def loss(
        self,
        phi: Float[Tensor, " m"],
        logits: Float[Tensor, "n c"],
        labels: Int[Tensor, " n"],
        weights: Float[Tensor, " n"] | None = None,
        memory: Float[Tensor, "n c"] | None = None,
    ) -> Float[Tensor, ""]:
        """See `DynamicLossNetwork.loss`."""
        losses = self.network.losses_at(phi, logits, labels, memory)
        return losses.mean() if weights is None else (weights * losses).sum()

    def report(self, phi: Float[Tensor, " m"]) -> Metrics:
        """What each part says of itself."""
        parts = self.spec.parts
        return {
            name: number
            for part, own in zip(parts, parts.split(phi), strict=True)
            for name, number in part.report(own).items()
        }

    def check(self, task: Task, num_classes: int | None = None) -> None:
        if num_classes is not None and self.spec.num_classes not in (None, num_classes):
            raise ValueError(f"is for {self.spec.num_classes} classes, and the {task.name} task has {num_classes}")

    def describe(self, phi: Float[Tensor, " m"]) -> str:
        parts, own = self.spec.parts, self.spec.parts.split(phi)
        classes = "any number of classes" if self.spec.num_classes is None else f"{self.spec.num_classes} classes"
        first, *others = (part.describe(numbers) for part, numbers in zip(parts, own, strict=True))
        return "\n".join(
            [f"It is {first}, for {classes}: {len(phi):,} weights in all.\n", _USAGE, *filter(None, others)]
        )

    def pictures(self, phi: Float[Tensor, " m"]) -> Sequence[Picture]:
        """The network's loss of a pair, and what parts have to show."""
        parts, own = self.spec.parts, self.spec.parts.split(phi.detach())
        surface = Surface(lambda pairs: parts.network.losses(own.network, pairs.to(phi)))
        return [
            surface,
            *(picture for part, numbers in zip(parts, own, strict=True) for picture in part.pictures(numbers)),
        ]


_USAGE = """```python
import l2t_ray

loss = l2t_ray.LearnedLoss.load("loss.safetensors")
loss(student(images), labels).backward()
```
"""
