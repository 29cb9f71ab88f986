"""Balanced softmax (Ren et al., NeurIPS 2020), which is logit adjustment (Menon et al., ICLR 2021) in the loss.

A student that is trained on classes of unequal shares learns that common ones are likelier. Here the logarithms of the
shares are added to its logits in training, and left out in use: the shares are explained, and the student need not.
"""

from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from l2t_ray.core.student import RowLoss, cross_entropy
from l2t_ray.methods.parts import Parts
from l2t_ray.methods.schedules import SHU_2019, PaperSchedule
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.settings.record import Real


class BalancedSoftmaxConfig(MethodSettings):
    """Cross-entropy with the logarithms of the training classes' shares added to the logits (Ren et al. 2020)."""

    paper_schedule: ClassVar[PaperSchedule | None] = SHU_2019
    goes_by_images: ClassVar[bool] = True

    name: Literal["balanced_softmax"] = "balanced_softmax"
    strength: Annotated[Real, Field(gt=0, le=10)] = 1.0
    """What the logarithms are multiplied by: tau of Menon et al. 1: balanced softmax."""

    def fixed_loss(self, parts: Parts) -> RowLoss:
        """
        Raises:
            UserError: if the training labels are of one class alone.
        """
        shifts = self.strength * log_shares(self.class_counts(parts))
        return balanced_softmax(shifts.to(parts.device))


def log_shares(counts: Int[np.ndarray, " c"]) -> Float[Tensor, " c"]:
    """Logarithms of the classes' shares, in double precision; a class without a label counts as if it had one."""
    shares = torch.from_numpy(counts).double().clamp(min=1)
    return (shares / shares.sum()).log()


def balanced_softmax(shifts: Float[Tensor, " c"]) -> RowLoss:
    """`-log softmax(logits + shifts)_y`, for `FixedLoss`.

    Args:
        shifts: of each class, `log_shares` times a strength.
    """

    def loss(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return cross_entropy(logits + shifts.to(logits), labels)

    return loss
