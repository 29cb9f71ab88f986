"""1-vs-1 transformation: one C-class prediction becomes C - 1 two-class comparisons."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.core.loss.part import Part

PairTransform = Literal["sigmoid", "softmax"]

TABLE_SCALE = 10.0
"""Weights that are no layer's are stored at a tenth of their effect: teachers, with steps of about 1e-3, move them."""


def other_classes(labels: Int[Tensor, " n"], num_classes: int) -> Int[Tensor, "n others"]:
    """The classes other than each row's own, in increasing order.

    Computed by arithmetic, not by a mask, so that shapes never depend on data (vmap and compile need that).
    """
    others = torch.arange(num_classes - 1, device=labels.device)
    return others + (others >= labels[:, None]).to(others.dtype)


def one_vs_one(
    logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"], transform: PairTransform = "sigmoid"
) -> Float[Tensor, "n c-1 2"]:
    """Pairs the score of the true class with the score of every other class.

    Writing `p = transform(logits)` and `y = labels`, entry `[i, j]` of the result is `(p[i, y_i], p[i, k_j])`, where
    `k_1 < ... < k_{c-1}` are the classes other than `y_i` (supplement, Sec. 2). The loss network reads one pair at a
    time, so its size does not depend on the number of classes.

    Args:
        logits: raw student outputs, one row per image, pixel or box.
        labels: true class of each row, in `[0, c)`.
        transform: `sigmoid` of each logit alone (the paper), or `softmax` over the c logits, which normalises them.

    Returns:
        The pairs, true class first, differentiable in `logits`.

    Raises:
        ValueError: if there are fewer than two classes, or the transform is unknown.
    """
    return pairs_of(probabilities(logits, transform), labels)


def probabilities(logits: Float[Tensor, "n c"], transform: PairTransform) -> Float[Tensor, "n c"]:
    """`sigmoid` of each logit alone, or `softmax` over all of a row.

    Raises:
        ValueError: if the transform is another.
    """
    if transform == "sigmoid":
        return logits.sigmoid()
    if transform == "softmax":
        return logits.softmax(dim=1)
    raise ValueError(f"transform must be 'sigmoid' or 'softmax', got {transform!r}.")


def pairs_of(p: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n c-1 2"]:
    """Each row's entry at its label, paired with every other entry (see `one_vs_one`)."""
    n, c = p.shape
    if c < 2:
        raise ValueError(f"one_vs_one needs at least 2 classes, got logits of shape ({n}, {c}).")
    p_other = p.gather(1, other_classes(labels, p.shape[1]))
    p_true = p.gather(1, labels[:, None]).expand_as(p_other)
    return torch.stack((p_true, p_other), dim=-1)


@dataclass(frozen=True)
class LabelTable(Part):
    """A learned C x C table that stands in for a pair's second label entry, so that a loss may treat each pair of
    classes differently. Without effect where its numbers are zero."""

    num_classes: int

    @property
    def num_weights(self) -> int:
        return self.num_classes**2

    def of_pairs(self, numbers: Float[Tensor, " m"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n others"]:
        """The entries of the pairs of `one_vs_one`."""
        table = numbers.view(self.num_classes, self.num_classes)
        return TABLE_SCALE * table[labels].gather(1, other_classes(labels, self.num_classes))

    def describe(self, numbers: Float[Tensor, " m"]) -> str:
        del numbers
        return "A table of learned entries lets it treat each pair of classes differently.\n"

    def quartiles(self, numbers: Float[Tensor, " m"]) -> Float[Tensor, "5"]:
        """Of all entries that a pair may have, from the least to the largest."""
        table = TABLE_SCALE * numbers.detach().view(self.num_classes, self.num_classes)
        others = table[~torch.eye(len(table), dtype=torch.bool)]
        return torch.quantile(others, torch.linspace(0, 1, 5).to(others))


class NoTable(Part):
    """The paper's constant label entries."""

    def of_pairs(self, numbers: Float[Tensor, " m"], labels: Int[Tensor, " n"]) -> None:
        del numbers, labels

    def quartiles(self, numbers: Float[Tensor, " m"]) -> None:
        del numbers
