"""1-vs-1 transformation: one C-class prediction becomes C - 1 two-class comparisons."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

PairTransform = Literal["sigmoid", "softmax"]


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
    n, c = logits.shape
    if c < 2:
        raise ValueError(f"one_vs_one needs at least 2 classes, got logits of shape ({n}, {c}).")
    if transform == "sigmoid":
        p = logits.sigmoid()
    elif transform == "softmax":
        p = logits.softmax(dim=1)
    else:
        raise ValueError(f"transform must be 'sigmoid' or 'softmax', got {transform!r}.")
    return pairs_of(p, labels)


def pairs_of(p: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n c-1 2"]:
    """Each row's entry at its label, paired with every other entry (see `one_vs_one`)."""
    p_other = p.gather(1, other_classes(labels, p.shape[1]))
    p_true = p.gather(1, labels[:, None]).expand_as(p_other)
    return torch.stack((p_true, p_other), dim=-1)
