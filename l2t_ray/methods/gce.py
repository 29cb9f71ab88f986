"""Generalised cross-entropy (Zhang & Sabuncu, NeurIPS 2018): between cross-entropy and mean absolute error."""

from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from l2t_ray.core.student import RowLoss
from l2t_ray.methods.parts import Parts
from l2t_ray.methods.schedules import SHU_2019, PaperSchedule
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.settings.record import Real


class GCEConfig(MethodSettings):
    """Generalised cross-entropy, a fixed loss made for noisy labels (Zhang & Sabuncu 2018)."""

    paper_schedule: ClassVar[PaperSchedule | None] = SHU_2019

    name: Literal["gce"] = "gce"
    q: Annotated[Real, Field(gt=0, le=1)] = 0.7
    """0 would be cross-entropy, 1 is the mean absolute error (paper: 0.7)."""

    def fixed_loss(self, parts: Parts) -> RowLoss:
        del parts
        return generalised_cross_entropy(self.q)


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
