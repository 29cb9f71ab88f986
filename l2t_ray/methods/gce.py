"""Generalised cross-entropy (Zhang & Sabuncu, NeurIPS 2018): between cross-entropy and mean absolute error."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.core.student import RowLoss


def generalised_cross_entropy(q: float) -> RowLoss:
    """`(1 - p_y^q) / q` with p the softmax of the logits.

    The limit q -> 0 is cross-entropy; q = 1 is `1 - p_y`, half the absolute error of p, which is bounded and therefore
    robust to symmetric noise, and slow. (The paper's truncated variant is not here.)

    Raises:
        ValueError: if q is not in (0, 1].
    """
    if not 0 < q <= 1:
        raise ValueError(f"q must be in (0, 1], got {q}.")

    def loss(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        # From log p, since the derivative of p^q at an underflowed p would be infinite.
        log_p = -F.cross_entropy(logits, labels, reduction="none")
        return -(q * log_p).expm1() / q

    return loss
