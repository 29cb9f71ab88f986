"""What gives a comparison of two classes its loss: the paper's network of linear layers, or plain cross-entropy.

Both are pure functions of the numbers that they are given. What else a loss is made of (a memory, a channel, a table of
label pairs) are parts of their own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from l2t_ray.core.lbfgs import LBFGS
from l2t_ray.core.loss.channel import Channel, NoChannel
from l2t_ray.core.loss.pairs import PairTransform, pairs_of, probabilities
from l2t_ray.core.loss.part import Part

LossInit = Literal["released", "linear", "cross_entropy", "gce"]
Activation = Literal["leaky_relu", "silu"]

GCE_Q = 0.7  # Zhang & Sabuncu 2018


@dataclass(frozen=True)
class Layers(Part):
    """Linear maps without biases on rows `[p_true, p_other, 1, r]`, with r = 0 or the pair's label entry."""

    hidden: int
    layers: int
    pairs: PairTransform
    activation: Activation

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """`(outputs, inputs)` of each linear map."""
        widths = [4, *[self.hidden] * (self.layers - 1), 1]
        return [(widths[i + 1], widths[i]) for i in range(self.layers)]

    @property
    def num_weights(self) -> int:
        return sum(rows * columns for rows, columns in self.shapes)

    def matrices(self, weights: Float[Tensor, " m"]) -> list[Tensor]:
        """`weights` split into those of each layer."""
        pieces = weights.split([rows * columns for rows, columns in self.shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def losses(
        self,
        weights: Float[Tensor, " m"],
        pairs: Float[Tensor, "*batch 2"],
        table_entries: Float[Tensor, "*batch"] | None = None,
    ) -> Float[Tensor, "*batch"]:
        """The loss of each pair."""
        first, *others = self.matrices(weights)
        # The constant entry 1 acts as the first layer's bias: no constant columns are materialised.
        x = F.linear(pairs, first[:, :2], first[:, 2])
        if table_entries is not None:
            x = x + table_entries[..., None] * first[:, 3]
        activation = F.silu if self.activation == "silu" else F.leaky_relu
        for weight in others:
            x = F.linear(activation(x), weight)
        return x.squeeze(-1)

    def row_losses(
        self,
        weights: Float[Tensor, " m"],
        logits: Float[Tensor, "n c"],
        labels: Int[Tensor, " n"],
        channel: Channel | NoChannel,
        entries: Float[Tensor, " e"],
        table_entries: Float[Tensor, "n others"] | None,
    ) -> Float[Tensor, " n"]:
        """The mean over each row's C - 1 pairs.

        Args:
            channel, entries: what stands between a row's class and its label.
            table_entries: the pairs' second label entries; None: they are zero.
        """
        p = channel.seen(entries, probabilities(logits, self.pairs))
        return self.losses(weights, pairs_of(p, labels), table_entries).mean(dim=1)

    def scale(self, weights: Float[Tensor, " m"], factor: float) -> None:
        """Makes every loss so many times as large, in place: a loss is linear in its last layer."""
        self.matrices(weights)[-1].mul_(factor)

    def describe(self, numbers: Float[Tensor, " m"]) -> str:
        del numbers
        return f"a dynamic loss network of {self.layers} layers ({self.pairs} pairs, {self.activation})"

    def initial(self, init: LossInit, seed: int) -> Float[Tensor, " m"]:
        """Weights to start from (see `DynamicLossNetwork`).

        Raises:
            ValueError: if `init` is unknown.
        """
        weights = self._kaiming(seed)
        if init == "released":
            return weights
        if init == "linear":
            return self._fitted(weights, lambda p: 1 - p[:, 0] + p[:, 1])
        if init == "cross_entropy":
            if self.pairs == "softmax":
                return self._fitted(weights, lambda p: -p[:, 0].log())
            return self._fitted(weights, lambda p: -p[:, 0].log() - (1 - p[:, 1]).log())
        if init == "gce":
            return self._fitted(weights, lambda p: (1 - p[:, 0] ** GCE_Q) / GCE_Q)
        raise ValueError(f"init must be 'released', 'linear', 'cross_entropy' or 'gce', got {init!r}.")

    def _kaiming(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        gain = nn.init.calculate_gain("leaky_relu", 0.01)
        # fan out, as released: std 0.22 for the 40-wide layers and 1.4 for the last.
        return torch.cat(
            [torch.randn(rows * cols, generator=generator) * (gain / math.sqrt(rows)) for rows, cols in self.shapes]
        )

    def _fitted(self, weights: Tensor, target: Callable[[Tensor], Tensor]) -> Tensor:
        """Least squares to `target` on a grid of pairs, from the random weights that are given.

        Half of the grid is uniform and half logarithmic towards (p_true = 0, p_other = 1), where the steep part of a
        logarithmic loss lies; values are clipped at 1e-2, where its slope is already a hundred times that at 1.
        """
        line = torch.linspace(0.01, 0.99, 21, dtype=torch.float64)
        steep = torch.logspace(-2, 0, 11, dtype=torch.float64).clamp(max=0.99)
        p_true = torch.cat((line, steep))
        p_other = torch.cat((line, 1 - steep))
        pairs = torch.cartesian_prod(p_true, p_other)
        if self.pairs == "softmax":
            pairs = pairs[pairs.sum(dim=1) <= 1.0]
        goal = target(pairs)
        weights = weights.double().requires_grad_()
        optimizer = LBFGS([weights], max_iter=150, history_size=20, line_search_fn="strong_wolfe")

        def closure() -> float:
            weights.grad = None
            residual = (self.losses(weights, pairs) - goal).square().mean()
            residual.backward()
            return residual.item()

        optimizer.step(closure)
        return weights.detach().float()


class CrossEntropy(Part):
    """No network: a comparison's loss is -log p_true, and there is nothing to learn but what parts have."""

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return []

    def matrices(self, weights: Float[Tensor, " m"]) -> list[Tensor]:
        del weights
        return []

    def losses(
        self,
        weights: Float[Tensor, " m"],
        pairs: Float[Tensor, "*batch 2"],
        table_entries: Float[Tensor, "*batch"] | None = None,
    ) -> Float[Tensor, "*batch"]:
        del weights, table_entries
        return -pairs[..., 0].log()

    def row_losses(
        self,
        weights: Float[Tensor, " m"],
        logits: Float[Tensor, "n c"],
        labels: Int[Tensor, " n"],
        channel: Channel | NoChannel,
        entries: Float[Tensor, " e"],
        table_entries: Float[Tensor, "n others"] | None,
    ) -> Float[Tensor, " n"]:
        """-log of what a row says of its label; finite where that vanishes."""
        del weights, table_entries
        return -channel.log_seen(entries, logits.log_softmax(dim=1), labels)

    def scale(self, weights: Float[Tensor, " m"], factor: float) -> None:
        """Nothing: it has no weights, and its push is 1 everywhere."""

    def describe(self, numbers: Float[Tensor, " m"]) -> str:
        del numbers
        return "cross-entropy without a network"

    def initial(self, init: LossInit, seed: int) -> Float[Tensor, " m"]:
        del init, seed
        return torch.zeros(0)
