"""The dynamic loss network (DLN): a small network that is the student's loss (supplement, Secs. 2 and 5.1).

It reads one 1-vs-1 pair at a time, `(p_true, p_other)`, with two label entries `(1, 0)` behind it, and gives the loss
of that comparison. A row's loss is the mean over its C - 1 pairs. Its weights `phi` are one flat vector: the teacher
rewrites them coordinate by coordinate, and `losses_at(phi, ...)` evaluates the network anywhere without copying.

The network itself stands in `layers.py`. It may be composed with a memory, a table of label pairs and a channel of
label noise: each is a part with numbers of its own in phi (`LossParts`).
"""

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from l2t_ray.core.loss import file as loss_file
from l2t_ray.core.loss.channel import Channel, NoChannel
from l2t_ray.core.loss.layers import Activation, CrossEntropy, Layers, LossInit
from l2t_ray.core.loss.memory import MemoryTerm, NoMemory
from l2t_ray.core.loss.pairs import LabelTable, NoTable, PairTransform

FAMILY = "pairs"
"""What a loss file calls losses of this kind."""


class Pieces(NamedTuple):
    """phi, split into the numbers of each part."""

    network: Float[Tensor, " m"]
    memory: Float[Tensor, " w"]
    table: Float[Tensor, " t"]
    channel: Float[Tensor, " e"]


class LossParts(NamedTuple):
    """What a loss is composed of, in the order in which phi holds the numbers of each."""

    network: Layers | CrossEntropy
    memory: MemoryTerm | NoMemory
    table: LabelTable | NoTable
    channel: Channel | NoChannel

    @property
    def num_weights(self) -> int:
        return sum(part.num_weights for part in self)

    def split(self, phi: Float[Tensor, " m"]) -> Pieces:
        """
        Raises:
            ValueError: if phi has another number of weights.
        """
        if phi.shape[0] != self.num_weights:
            raise ValueError(f"this loss network has {self.num_weights} weights, got a vector of {phi.shape[0]}.")
        return Pieces(*phi.split([part.num_weights for part in self]))

    def shift_to(self, matrix: Float[Tensor, "c c"], phi: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """What to add to phi so that its channel, whatever it is, becomes `matrix`, but for the floor.

        Raises:
            ValueError: if there is no channel.
        """
        if not isinstance(self.channel, Channel):
            raise ValueError("this loss has no channel of label noise.")
        entries = self.split(phi).channel
        others = phi.new_zeros(len(phi) - len(entries))
        return torch.cat((others, self.channel.entries_of(matrix).to(phi) - entries))

    def noise(self, phi: Float[Tensor, " m"]) -> Float[Tensor, "c c"] | None:
        """The channel of label noise, row the class, column the label that it is given; None: there is no channel."""
        return self.channel.log_matrix(self.split(phi).channel).exp() if isinstance(self.channel, Channel) else None


@dataclass(frozen=True)
class LossNetworkSpec:
    """Everything about a loss network but its weights.

    Attributes:
        hidden: units of each hidden layer (paper: 40).
        layers: linear maps in all, without biases (paper: 5). 0: no network, the loss is -log p_true, and channel and
            memory are all that is learned.
        pairs: how logits become probabilities: `sigmoid` (paper) or `softmax`.
        activation: `leaky_relu` with slope 0.01 (released code) or `silu`. A piecewise linear loss is blind to its
            constant label entries: the hypergradient of their weights is exactly zero, for the student sees only the
            slope of the loss, and a shifted kink leaves the slope alone almost everywhere.
        label_table: number of classes C of a learned C x C table that stands in for the second label entry, so that
            a loss may treat each pair of classes differently; None: the constant entry 0 (paper).
        channel: number of classes C of a learned C x C noise channel T, rows adding up to 1: pairs are then of p T,
            what the student's p says of the label that a noisy annotator would give, so that the p that fits best is
            that of the true classes (forward correction: Patrini et al., CVPR 2017). Needs softmax pairs, and stands
            in for a label-pair table. None: pairs are of p itself.
        memory: where the weight of the memory term starts: what the student has said of an image so far may count
            beside its label (`memory.py`). The weight is learned, between 0 and twice this. None: no such term.
            (Liu et al. 2020: 3 on CIFAR-10, 7 on CIFAR-100; beside a channel 1 was better than 3, docs/log.md.)
        mean: `pairs`: mean over the C - 1 pairs; `released`: (C - 1) / C of it, for the released code also counts the
            zeroed row of the true class.
    """

    hidden: int = 40
    layers: int = 5
    pairs: PairTransform = "sigmoid"
    activation: Activation = "leaky_relu"
    label_table: int | None = None
    mean: Literal["pairs", "released"] = "pairs"
    channel: int | None = None
    memory: float | None = None

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.layers < 0 or self.layers == 1:
            raise ValueError(
                "a loss network needs hidden >= 1 and layers >= 2, or 0 with a channel or memory, got "
                f"hidden={self.hidden}, layers={self.layers}."
            )
        if self.layers == 0 and self.channel is None and self.memory is None:
            raise ValueError(
                "a loss network of 0 layers is cross-entropy: without channel and memory it has nothing to learn."
            )
        if self.layers == 0 and self.pairs != "softmax":
            raise ValueError("a loss network of 0 layers is cross-entropy, which is of softmax pairs.")
        if self.layers == 0 and self.label_table is not None:
            raise ValueError("a loss network of 0 layers is cross-entropy, which reads no label-pair table.")
        if self.memory is not None and not 0 < self.memory < math.inf:
            raise ValueError(f"the weight of a loss network's memory must start above 0, got {self.memory}.")
        if self.num_classes is not None and self.num_classes < 2:
            raise ValueError(f"a loss network's table or channel is of 2 classes or more, got {self.num_classes}.")
        if self.channel is not None and (self.label_table is not None or self.pairs != "softmax"):
            raise ValueError("a loss network with a channel needs softmax pairs and no label-pair table.")

    @cached_property
    def parts(self) -> LossParts:
        return LossParts(
            CrossEntropy() if self.layers == 0 else Layers(self.hidden, self.layers, self.pairs, self.activation),
            NoMemory() if self.memory is None else MemoryTerm(self.memory),
            NoTable() if self.label_table is None else LabelTable(self.label_table),
            NoChannel() if self.channel is None else Channel(self.channel),
        )

    @property
    def num_weights(self) -> int:
        return self.parts.num_weights

    @property
    def num_classes(self) -> int | None:
        """The number of classes that a table or channel ties the loss to; None: it is for any number."""
        return self.channel if self.label_table is None else self.label_table


class DynamicLossNetwork(nn.Module):
    """A learned loss. `loss(logits, labels)` is all that a training loop needs.

    >>> loss_network = DynamicLossNetwork(init="cross_entropy", pairs="softmax", activation="silu")
    >>> loss_network.loss(student(images), labels).backward()

    Args:
        init: `released`: Kaiming-normal, fan out (random sign); `linear`: the function
            1 - p_true + p_other; `cross_entropy`: fitted to -log p_true - log(1 - p_other), for softmax pairs to
            -log p_true; `gce`: fitted to generalised cross-entropy (1 - p_true^0.7) / 0.7.
        seed: of the random weights. The global generator is neither read nor moved.
        **spec: fields of `LossNetworkSpec`.
    """

    def __init__(
        self,
        hidden: int = 40,
        layers: int = 5,
        init: LossInit = "released",
        *,
        pairs: PairTransform = "sigmoid",
        activation: Activation = "leaky_relu",
        label_table: int | None = None,
        mean: Literal["pairs", "released"] = "pairs",
        channel: int | None = None,
        memory: float | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.spec = LossNetworkSpec(hidden, layers, pairs, activation, label_table, mean, channel, memory)
        self.phi = nn.Parameter(initial_weights(self.spec, init, seed))

    def forward(
        self, pairs: Float[Tensor, "*batch 2"], table_entries: Float[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch"]:
        """The loss of each pair; `table_entries` are the label-pair entries, absent in the paper's network."""
        parts = self.spec.parts
        return parts.network.losses(parts.split(self.phi).network, pairs, table_entries)

    def losses(
        self,
        logits: Float[Tensor, "n c"],
        labels: Int[Tensor, " n"],
        memory: Float[Tensor, "n c"] | None = None,
    ) -> Float[Tensor, " n"]:
        """The loss of each row: the mean over its C - 1 pairs, and what its row of `memory` adds, if there is one."""
        return self.losses_at(self.phi, logits, labels, memory)

    def loss(
        self,
        logits: Float[Tensor, "n c"],
        labels: Int[Tensor, " n"],
        weights: Float[Tensor, " n"] | None = None,
        memory: Float[Tensor, "n c"] | None = None,
    ) -> Float[Tensor, ""]:
        """`sum_i w_i l_i`; without weights the plain mean, `w_i = 1 / n`."""
        losses = self.losses(logits, labels, memory)
        return losses.mean() if weights is None else (weights * losses).sum()

    def losses_at(
        self,
        phi: Float[Tensor, " m"],
        logits: Float[Tensor, "n c"],
        labels: Int[Tensor, " n"],
        memory: Float[Tensor, "n c"] | None = None,
    ) -> Float[Tensor, " n"]:
        """`losses` with the weights `phi` in place of the module's own: a pure function of its arguments."""
        spec, num_classes = self.spec, logits.shape[1]
        dtype = torch.promote_types(phi.dtype, logits.dtype)  # a student in double precision is evaluated in it
        phi, logits = phi.to(dtype), logits.to(dtype)
        if spec.num_classes not in (None, num_classes):
            raise ValueError(
                f"this loss was learned for {spec.num_classes} classes (it holds a table of them), "
                f"got logits of {num_classes} classes."
            )
        parts, own = spec.parts, spec.parts.split(phi)
        entries = parts.table.of_pairs(own.table, labels)
        losses = parts.network.row_losses(own.network, logits, labels, parts.channel, own.channel, entries)
        if spec.mean == "released":
            losses = losses * ((num_classes - 1) / num_classes)
        return losses if memory is None else losses + parts.memory.losses(own.memory, logits, memory)

    def save(self, path: str | Path) -> None:
        """Writes weights and architecture to one `.safetensors` file; `load` needs nothing else.

        Raises:
            OSError: if the file cannot be written.
        """
        loss_file.write(path, FAMILY, asdict(self.spec), self.phi)

    @classmethod
    def load(cls, path: str | Path) -> "DynamicLossNetwork":
        """The loss network of a file that `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged, holds something else, or is of a newer version.
        """
        _, spec, phi = loss_file.read(path, {FAMILY: LossNetworkSpec})
        return cls.of(spec, phi)

    @classmethod
    def of(cls, spec: LossNetworkSpec, phi: Float[Tensor, " m"]) -> "DynamicLossNetwork":
        """The loss network with these weights."""
        network = cls(**asdict(spec))
        network.phi = nn.Parameter(phi)
        return network


def initial_weights(spec: LossNetworkSpec, init: LossInit, seed: int) -> Float[Tensor, " m"]:
    """Weights to start from (see `DynamicLossNetwork`). Those that are no layer's start at zero.

    Raises:
        ValueError: if `init` is unknown.
    """
    network, *others = spec.parts
    return torch.cat((network.initial(init, seed), torch.zeros(sum(part.num_weights for part in others))))
