"""The paper's family of losses: a loss network on class decisions (supplement, Sec. 2)."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.core.loss.channel import Channel
from l2t_ray.core.loss.class_push import class_weights
from l2t_ray.core.loss.family import Bars, LossPicture, RowLosses, Surface
from l2t_ray.core.loss.memory import MemoryTerm
from l2t_ray.core.loss.network import FAMILY, DynamicLossNetwork, LossNetworkSpec
from l2t_ray.core.loss.part import part_sizes
from l2t_ray.core.student import cross_entropy, rows_of
from l2t_ray.interfaces import Metrics, Task, Terms

_COLUMN = "class_weight_"


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

    def row_losses(
        self,
        phi: Float[Tensor, " m"],
        logits: Float[Tensor, "n c"],
        labels: Int[Tensor, " n"],
        memory: Float[Tensor, "n c"] | None = None,
    ) -> Float[Tensor, " n"]:
        return self.network.losses_at(phi, logits, labels, memory)

    def report(self, phi: Float[Tensor, " m"]) -> Metrics:
        """What each part says of itself, and `class_weight_<class number>` where there is a table."""
        parts = self.spec.parts
        found = {
            name: number
            for part, own in zip(parts, parts.split(phi), strict=True)
            for name, number in part.report(own).items()
        }
        return found | {f"{_COLUMN}{name}": number for name, number in self._class_weights(phi).items()}

    def _class_weights(self, phi: Float[Tensor, " m"]) -> dict[str, float]:
        weights = class_weights(self.spec, self.spec.parts.split(phi))
        return {} if weights is None else {str(number): weight for number, weight in enumerate(weights.tolist())}

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

    def pictures(self, phi: Float[Tensor, " m"]) -> Sequence[LossPicture]:
        """The network's loss of a pair, the weights of classes, and what parts have to show."""
        parts, own = self.spec.parts, self.spec.parts.split(phi.detach())
        surface = Surface(lambda pairs: parts.network.losses(own.network, pairs.to(phi)))
        weights = self._class_weights(phi)
        return [
            surface,
            *([Bars("weights of classes", weights, 1.0, _COLUMN, are_classes=True)] if weights else []),
            *(picture for part, numbers in zip(parts, own, strict=True) for picture in part.pictures(numbers)),
        ]


_USAGE = """```python
import l2t_ray

loss = l2t_ray.LearnedLoss.load("loss.safetensors")
loss(student(images), labels).backward()
```
"""
