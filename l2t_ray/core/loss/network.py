"""The dynamic loss network (DLN): a small network that is the student's loss (supplement, Secs. 2 and 5.1).

It reads one 1-vs-1 pair at a time, `(p_true, p_other)`, with two label entries `(1, 0)` behind it, and gives the loss
of that comparison. A row's loss is the mean over its C - 1 pairs. Its weights `phi` are one flat vector: the teacher
rewrites them coordinate by coordinate, and `losses_at(phi, ...)` evaluates the network anywhere without copying.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from l2t_ray.core.lbfgs import LBFGS
from l2t_ray.core.loss import file as loss_file
from l2t_ray.core.loss.memory import agreement_losses
from l2t_ray.core.loss.pairs import PairTransform, one_vs_one, other_classes, pairs_of

LossInit = Literal["released", "linear", "cross_entropy", "gce"]
Activation = Literal["leaky_relu", "silu"]

# Weights that are no layer's are stored at a tenth of their effect: a teacher whose steps are about 1e-3 moves them.
TABLE_SCALE = 10.0
# What a channel adds to probabilities before their logarithm: nothing is impossible, and all of it can be learned.
CHANNEL_FLOOR = 1e-3
GCE_Q = 0.7  # Zhang & Sabuncu 2018


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
        if self.memory is not None and not 0 < self.memory < math.inf:
            raise ValueError(f"the weight of a loss network's memory must start above 0, got {self.memory}.")
        if self.num_classes is not None and self.num_classes < 2:
            raise ValueError(f"a loss network's table or channel is of 2 classes or more, got {self.num_classes}.")
        if self.channel is not None and (self.label_table is not None or self.pairs != "softmax"):
            raise ValueError("a loss network with a channel needs softmax pairs and no label-pair table.")

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """`(outputs, inputs)` of each linear map."""
        if self.layers == 0:
            return []
        widths = [4, *[self.hidden] * (self.layers - 1), 1]
        return [(widths[i + 1], widths[i]) for i in range(self.layers)]

    @property
    def num_weights(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """Weights of each part, in the order in which phi holds them: layers, memory, table or channel."""
        return [*(rows * columns for rows, columns in self.shapes), int(self.memory is not None), self.num_entries]

    @property
    def num_classes(self) -> int | None:
        """The number of classes that a table or channel ties the loss to; None: it is for any number."""
        return self.channel if self.label_table is None else self.label_table

    @property
    def num_entries(self) -> int:
        """The last weights: the entries of the label-pair table or of the channel."""
        return (self.num_classes or 0) ** 2


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
        return pair_losses(self.spec, self.phi, pairs, table_entries)

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
        dtype = torch.promote_types(phi.dtype, logits.dtype)  # a student in double precision is judged in it
        phi, logits = phi.to(dtype), logits.to(dtype)
        if spec.num_classes not in (None, num_classes):
            raise ValueError(
                f"this loss was learned for {spec.num_classes} classes (it holds a table of them), "
                f"got logits of {num_classes} classes."
            )
        if spec.layers == 0:
            losses = -self._log_given(phi, logits.log_softmax(dim=1), labels)
        else:
            losses = pair_losses(spec, phi, *self._pairs(phi, logits, labels)).mean(dim=1)
        if spec.mean == "released":
            losses = losses * ((num_classes - 1) / num_classes)
        return losses if memory is None else losses + memory_weight(spec, phi) * agreement_losses(logits, memory)

    def _log_given(self, phi: Tensor, log_p: Tensor, labels: Tensor) -> Tensor:
        """log (p T)_y of each row; log p_y without a channel."""
        if self.spec.channel is None:
            return log_p.gather(1, labels[:, None])[:, 0]
        return (log_p + log_channel(self.spec, phi).t()[labels]).logsumexp(dim=1)

    def _pairs(self, phi: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """The C - 1 pairs of each row, and their entries of the label-pair table, if there is one."""
        spec, num_classes = self.spec, logits.shape[1]
        if spec.channel is not None:
            return pairs_of(logits.softmax(dim=1) @ log_channel(spec, phi).exp(), labels), None
        pairs = one_vs_one(logits, labels, spec.pairs)
        if spec.label_table is None:
            return pairs, None
        table = phi[-spec.num_entries :].view(num_classes, num_classes)
        return pairs, TABLE_SCALE * table[labels].gather(1, other_classes(labels, num_classes))

    def save(self, path: str | Path) -> None:
        """Writes weights and architecture to one `.safetensors` file; `load` needs nothing else.

        Raises:
            OSError: if the file cannot be written.
        """
        loss_file.write(path, asdict(self.spec), self.phi)

    @classmethod
    def load(cls, path: str | Path) -> "DynamicLossNetwork":
        """The loss network of a file that `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged, holds something else, or is of a newer version.
        """
        spec, phi = loss_file.read(path, LossNetworkSpec)
        if spec.num_weights != len(phi):
            raise ValueError(
                f"{path} is damaged: its architecture has {spec.num_weights} weights, the file holds {len(phi)}."
            )
        network = cls(**asdict(spec))
        network.phi = nn.Parameter(phi)
        return network


def pair_losses(
    spec: LossNetworkSpec,
    phi: Float[Tensor, " m"],
    pairs: Float[Tensor, "*batch 2"],
    table_entries: Float[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """The network itself, on rows `[p_true, p_other, 1, r]` with r = 0 or the label-pair entry."""
    if phi.shape[0] != spec.num_weights:
        raise ValueError(f"this loss network has {spec.num_weights} weights, got a vector of {phi.shape[0]}.")
    if spec.layers == 0:
        return -pairs[..., 0].log()
    first, *others = layer_weights(spec, phi)
    # The constant entry 1 acts as the first layer's bias: no constant columns are materialised.
    x = F.linear(pairs, first[:, :2], first[:, 2])
    if table_entries is not None:
        x = x + table_entries[..., None] * first[:, 3]
    activation = F.silu if spec.activation == "silu" else F.leaky_relu
    for weight in others:
        x = F.linear(activation(x), weight)
    return x.squeeze(-1)


def memory_weight(spec: LossNetworkSpec, phi: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """How much the memory counts: between 0 and twice its start, which it has where its entry of phi is zero.

    Raises:
        ValueError: if the loss has no memory.
    """
    if spec.memory is None:
        raise ValueError("this loss has no memory: leave the argument `memory` out.")
    start = phi.shape[0] - spec.num_entries - 1
    # A slice: forward mode makes double precision of a product of numbers and a tensor without dimensions.
    return (2 * spec.memory * (TABLE_SCALE * phi[start : start + 1]).sigmoid()).squeeze(0)


def log_channel(spec: LossNetworkSpec, phi: Float[Tensor, " m"]) -> Float[Tensor, "c c"]:
    """Logarithm of the noise channel: row the class, column the label that it is given. The channel is the identity,
    but for a floor, where the entries of phi are zero."""
    assert spec.channel is not None
    entries = phi[-spec.num_entries :].view(spec.channel, spec.channel)
    return (_log_floored(torch.eye(spec.channel).to(phi)) + TABLE_SCALE * entries).log_softmax(dim=1)


def started_at(spec: LossNetworkSpec, phi: Float[Tensor, " m"], matrix: Float[Tensor, "c c"]) -> Float[Tensor, " m"]:
    """What to add to phi so that its channel, whatever it is, becomes `matrix`, but for the floor."""
    shift = torch.zeros_like(phi)
    identity = torch.eye(len(matrix)).to(matrix)
    entries = ((_log_floored(matrix) - _log_floored(identity)) / TABLE_SCALE).flatten()
    shift[-spec.num_entries :] = entries - phi[-spec.num_entries :]
    return shift


def _log_floored(matrix: Tensor) -> Tensor:
    return (matrix + CHANNEL_FLOOR).log()


def layer_weights(spec: LossNetworkSpec, phi: Float[Tensor, " m"]) -> list[Tensor]:
    """`phi` cut into the weight matrices of its layers."""
    pieces = phi.split(spec.sizes)
    return [piece.view(shape) for piece, shape in zip(pieces, spec.shapes, strict=False)]


def initial_weights(spec: LossNetworkSpec, init: LossInit, seed: int) -> Float[Tensor, " m"]:
    """Weights to start from (see `DynamicLossNetwork`). Those that are no layer's start at zero.

    Raises:
        ValueError: if `init` is unknown.
    """
    phi = _kaiming_weights(spec, seed)
    if init == "released" or spec.layers == 0:
        return phi
    if init == "linear":
        return _fit(spec, phi, lambda p: 1 - p[:, 0] + p[:, 1])
    if init == "cross_entropy":
        if spec.pairs == "softmax":
            return _fit(spec, phi, lambda p: -p[:, 0].log())
        return _fit(spec, phi, lambda p: -p[:, 0].log() - (1 - p[:, 1]).log())
    if init == "gce":
        return _fit(spec, phi, lambda p: (1 - p[:, 0] ** GCE_Q) / GCE_Q)
    raise ValueError(f"init must be 'released', 'linear', 'cross_entropy' or 'gce', got {init!r}.")


def _kaiming_weights(spec: LossNetworkSpec, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    gain = nn.init.calculate_gain("leaky_relu", 0.01)
    # fan out, as released: std 0.22 for the 40-wide layers and 1.4 for the last.
    pieces = [torch.randn(rows * cols, generator=generator) * (gain / math.sqrt(rows)) for rows, cols in spec.shapes]
    return torch.cat([*pieces, torch.zeros(sum(spec.sizes[len(pieces) :]))])


def _fit(spec: LossNetworkSpec, phi: Tensor, target: Callable[[Tensor], Tensor]) -> Tensor:
    """Least squares of the network to `target` on a grid of pairs, from the random weights `phi`.

    Half of the grid is uniform and half logarithmic towards (p_true = 0, p_other = 1), where the steep part of a
    logarithmic loss lies; values are clipped at 1e-2, where its slope is already a hundred times that at 1.
    """
    line = torch.linspace(0.01, 0.99, 21, dtype=torch.float64)
    steep = torch.logspace(-2, 0, 11, dtype=torch.float64).clamp(max=0.99)
    p_true = torch.cat((line, steep))
    p_other = torch.cat((line, 1 - steep))
    pairs = torch.cartesian_prod(p_true, p_other)
    if spec.pairs == "softmax":
        pairs = pairs[pairs.sum(dim=1) <= 1.0]
    goal = target(pairs)
    bare = LossNetworkSpec(spec.hidden, spec.layers, spec.pairs, spec.activation)
    weights, rest = phi.split([bare.num_weights, spec.num_weights - bare.num_weights])
    weights = weights.double().requires_grad_()
    optimizer = LBFGS([weights], max_iter=150, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> float:
        weights.grad = None
        residual = (pair_losses(bare, weights, pairs) - goal).square().mean()
        residual.backward()
        return residual.item()

    optimizer.step(closure)
    return torch.cat((weights.detach().float(), rest))
