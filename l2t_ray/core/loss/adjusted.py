"""Adjusted cross-entropy: a loss of class decisions with few numbers, beside the loss network.

    l(z, y) = T / (P S) ((1 - e) f_q(y) + e mean_j f_q(j)) + memory,   f_q(j) = (1 - s_j^q) / q,
    s = softmax(z / T + b) channel

b are shifts of the logits by class, which is what balanced softmax sets by hand, e the amount of label smoothing, q the
power of generalised cross-entropy, T a temperature; each may be left out. P and S hold the push at cross-entropy's
(`adjustments.py`). So does the factor T: the derivative in the logits is s - y, as cross-entropy's at the answer s.
Where phi is zero it is cross-entropy, or, with shifts that start at the logarithms of the classes' shares, balanced
softmax (Ren et al., NeurIPS 2020).

Of a round's hypergradient the noise is several times the signal: thousands of weights walk at random where ten move
(docs/log.md). A channel of label noise and a memory compose with it as with the loss network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.core.loss.adjustments import Number, Shifts, mean_push_of_power, mean_push_of_smoothing, powered
from l2t_ray.core.loss.channel import Channel, NoChannel
from l2t_ray.core.loss.family import LossPicture, RowLosses
from l2t_ray.core.loss.memory import MemoryTerm, NoMemory
from l2t_ray.core.loss.part import part_sizes
from l2t_ray.core.student import cross_entropy, rows_of
from l2t_ray.interfaces import Metrics, Task, Terms

MOST_SMOOTHING = 0.5
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.25, 4.0


class AdjustedPieces(NamedTuple):
    """phi, split into the numbers of each part."""

    shifts: Float[Tensor, " c"]
    smoothing: Float[Tensor, " s"]
    power: Float[Tensor, " q"]
    temperature: Float[Tensor, " t"]
    memory: Float[Tensor, " w"]
    channel: Float[Tensor, " e"]


class AdjustedParts(NamedTuple):
    """What the loss is composed of, in the order in which phi holds the numbers of each."""

    shifts: Shifts
    smoothing: Number
    power: Number
    temperature: Number
    memory: MemoryTerm | NoMemory
    channel: Channel | NoChannel

    def split(self, phi: Float[Tensor, " m"]) -> AdjustedPieces:
        return AdjustedPieces(*phi.split([part.num_weights for part in self]))


@dataclass(frozen=True)
class AdjustedSpec:
    """Everything about an adjusted cross-entropy but its weights.

    Attributes:
        shifts: where the shifts begin, one a class; their mean does not count. Empty: there are none.
        smoothing, power, temperature: whether each of these numbers is learned.
        channel: number of classes C of a learned C x C channel of label noise (`channel.py`); None: there is none.
        memory: where the weight of the memory term starts (`memory.py`); None: there is no such term.

    Raises:
        ValueError: if nothing is learned, or the parts do not fit together.
    """

    shifts: tuple[float, ...] = ()
    smoothing: bool = False
    power: bool = False
    temperature: bool = False
    channel: int | None = None
    memory: float | None = None

    def __post_init__(self) -> None:
        if len(self.shifts) == 1 or not all(map(math.isfinite, self.shifts)):
            raise ValueError(f"shifts must be finite numbers, one for each of 2 classes or more, got {self.shifts}.")
        if self.channel is not None and self.channel < 2:
            raise ValueError(f"a channel is of 2 classes or more, got {self.channel}.")
        if self.shifts and self.channel not in (None, len(self.shifts)):
            raise ValueError(f"a channel of {self.channel} classes does not fit {len(self.shifts)} shifts.")
        if self.memory is not None and not 0 < self.memory < math.inf:
            raise ValueError(f"the weight of a memory must start above 0, got {self.memory}.")
        if self.num_weights == 0:
            raise ValueError("an adjusted cross-entropy of which nothing is learned is cross-entropy.")

    @cached_property
    def parts(self) -> AdjustedParts:
        return AdjustedParts(
            Shifts(self.shifts),
            Number("smoothing", 0.0, 0.0, MOST_SMOOTHING, self.smoothing),
            Number("power", 0.0, 0.0, 1.0, self.power),
            Number("temperature", 1.0, LEAST_TEMPERATURE, MOST_TEMPERATURE, self.temperature),
            NoMemory() if self.memory is None else MemoryTerm(self.memory),
            NoChannel() if self.channel is None else Channel(self.channel),
        )

    @property
    def num_weights(self) -> int:
        return sum(part.num_weights for part in self.parts)

    @property
    def num_classes(self) -> int | None:
        """The number of classes that shifts or channel tie the loss to; None: it is for any number."""
        return len(self.shifts) or self.channel


class AdjustedLoss:
    """The family (`family.KeptFamily`).

    >>> AdjustedLoss(AdjustedSpec(shifts=(0.0,) * 10, smoothing=True))

    Args:
        task: that the rows are of; None: nobody knows.
    """

    family: ClassVar[str] = "adjusted"
    spec_type: ClassVar[type] = AdjustedSpec

    def __init__(self, spec: AdjustedSpec, task: Task | None = None):
        self.spec, self._task = spec, task

    @classmethod
    def of(cls, spec: AdjustedSpec) -> "AdjustedLoss":
        return cls(spec)

    @property
    def phi(self) -> Float[Tensor, " m"]:
        """Zeros: cross-entropy, its logits shifted as `spec` says."""
        return torch.zeros(self.spec.num_weights)

    @property
    def groups(self) -> dict[str, int]:
        """How many weights each part has, in the order of phi."""
        return part_sizes(self.spec.parts)

    @property
    def reads_memory(self) -> bool:
        return self.spec.memory is not None

    def shift_to(self, channel: Float[Tensor, "c c"], phi: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """What to add to phi so that its channel of label noise becomes this one, but for the floor.

        Raises:
            ValueError: if there is no channel.
        """
        part = self.spec.parts.channel
        if not isinstance(part, Channel):
            raise ValueError("this loss has no channel of label noise.")
        entries = self.spec.parts.split(phi).channel
        return torch.cat((phi.new_zeros(len(phi) - len(entries)), part.entries_of(channel).to(phi) - entries))

    def noise(self, phi: Float[Tensor, " m"]) -> Float[Tensor, "c c"] | None:
        """The channel of label noise, row the class, column the label that it is given; None: there is no channel."""
        parts = self.spec.parts
        return parts.channel.log_matrix(parts.split(phi).channel).exp() if isinstance(parts.channel, Channel) else None

    def within_bounds(self, phi: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """phi with every number within its bounds, as a teacher leaves it after each move."""
        parts = self.spec.parts
        return torch.cat(
            [
                part.within_bounds(own) if isinstance(part, Number) and len(own) else own
                for part, own in zip(parts, parts.split(phi), strict=True)
            ]
        )

    def row_losses(
        self,
        phi: Float[Tensor, " m"],
        logits: Float[Tensor, "n c"],
        labels: Int[Tensor, " n"],
        memory: Float[Tensor, "n c"] | None = None,
    ) -> Float[Tensor, " n"]:
        """
        Raises:
            ValueError: if the logits are of another number of classes.
        """
        if self.spec.num_classes not in (None, logits.shape[1]):
            raise ValueError(f"a loss for {self.spec.num_classes} classes was given logits of {logits.shape[1]}.")
        parts, own = self.spec.parts, self.spec.parts.split(phi)
        smoothing, power = parts.smoothing.value(own.smoothing), parts.power.value(own.power)
        temperature = parts.temperature.value(own.temperature)
        cooled = logits if temperature is None else logits / temperature
        log_p = parts.shifts.shifted(own.shifts, cooled).log_softmax(dim=1)
        losses = powered(parts.channel.log_seen(own.channel, log_p, labels), power)
        if smoothing is not None:
            others = powered(parts.channel.log_seen_each(own.channel, log_p), power).mean(dim=1)
            losses = losses + smoothing * (others - losses)
            losses = losses / mean_push_of_smoothing(smoothing, logits.shape[1])
        if power is not None:
            losses = losses / mean_push_of_power(power)
        if temperature is not None:
            losses = losses * temperature
        return losses if memory is None else losses + parts.memory.losses(own.memory, logits, memory)

    def losses(self, phi: Float[Tensor, " m"], terms: Terms, memory: Float[Tensor, "n c"] | None) -> RowLosses:
        rows = rows_of(terms, self._task)
        own_memory = None if memory is None else memory[rows.owner]
        values = self.row_losses(phi, rows.logits, rows.labels, own_memory)
        return RowLosses(values, rows.weights, rows.owner, rows.rest)

    def fixed(self, terms: Terms) -> Float[Tensor, " n"]:
        rows = rows_of(terms, self._task)
        return cross_entropy(rows.logits, rows.labels)

    def report(self, phi: Float[Tensor, " m"]) -> Metrics:
        """What each part says of itself."""
        parts = self.spec.parts
        pairs = zip(parts, parts.split(phi), strict=True)
        return {name: number for part, own in pairs for name, number in part.report(own).items()}

    def check(self, task: Task, num_classes: int | None = None) -> None:
        if num_classes is not None and self.spec.num_classes not in (None, num_classes):
            raise ValueError(f"is for {self.spec.num_classes} classes, and the {task.name} task has {num_classes}")

    def describe(self, phi: Float[Tensor, " m"]) -> str:
        parts = self.spec.parts
        classes = "any number of classes" if self.spec.num_classes is None else f"{self.spec.num_classes} classes"
        said = [part.describe(own) for part, own in zip(parts, parts.split(phi), strict=True)]
        return "\n".join(
            [
                f"It is an adjusted cross-entropy, for {classes}: {len(phi):,} weights in all.\n",
                _USAGE,
                *filter(None, said),
            ]
        )

    def pictures(self, phi: Float[Tensor, " m"]) -> Sequence[LossPicture]:
        parts, own = self.spec.parts, self.spec.parts.split(phi.detach())
        return [picture for part, numbers in zip(parts, own, strict=True) for picture in part.pictures(numbers)]


_USAGE = """```python
import l2t_ray

loss = l2t_ray.LearnedLoss.load("loss.safetensors")
loss(student(images), labels).backward()
```
"""
