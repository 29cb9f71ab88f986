"""Class-balanced cross-entropy by effective numbers of samples (Cui et al., CVPR 2019).

The n-th image of a class brings less than the first one, for it overlaps with those that are there. Of n images
(1 - beta^n) / (1 - beta) count; a class is weighed by the inverse of that. beta = 0 is plain cross-entropy, beta -> 1
weighs by the inverse of n.

Weights from the first round on let a student see little but rare images while it learns its features. So they may come
late, after most of the rounds are over (deferred re-weighting: Cao et al., NeurIPS 2019, whose margins are not here:
they are of students with a normalised last layer).
"""

from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.core.student import RowLoss, cross_entropy, weighted_cross_entropy
from l2t_ray.methods.fixed_loss import FixedLoss
from l2t_ray.methods.parts import Parts
from l2t_ray.methods.phases import Phase, rounds_of
from l2t_ray.methods.schedules import SHU_2019, PaperSchedule
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.settings.record import Fraction, Share


class ClassBalancedConfig(MethodSettings):
    """Cross-entropy weighed by the inverse of each class's effective number of images (Cui et al. 2019)."""

    paper_schedule: ClassVar[PaperSchedule | None] = SHU_2019
    goes_by_images: ClassVar[bool] = True

    name: Literal["class_balanced"] = "class_balanced"
    beta: Share = 0.9999
    """How much a class's images overlap (paper: 0.9, 0.99, 0.999 and 0.9999; the last one for CIFAR-10)."""

    deferred: Fraction = 0.0
    """Share of the rounds under plain cross-entropy, before the weights count: of those in which no validation image is
    trained on, but for `mixed` (Cao et al. 2019: 0.8)."""

    def phases(self, parts: Parts) -> list[Phase]:
        first, *rest = super().phases(parts)
        if not self.deferred:
            return [first, *rest]
        switch = rounds_of(self.deferred, rest[0].first_round if rest else parts.num_rounds)
        return [
            Phase(0, FixedLoss(parts.trainee, cross_entropy), first.data),
            Phase(switch, first.method, first.data),
            *rest,
        ]

    def fixed_loss(self, parts: Parts) -> RowLoss:
        """
        Raises:
            UserError: if the training labels are of one class alone.
        """
        return weighted_cross_entropy(class_weights(self.class_counts(parts), self.beta).to(parts.device))


def class_weights(counts: Int[np.ndarray, " c"], beta: float) -> Float[Tensor, " c"]:
    """`(1 - beta) / (1 - beta^n_c)`, scaled to the mean 1 over classes, in double precision; a class without a label
    counts as if it had one."""
    numbers = torch.from_numpy(counts).double().clamp(min=1)
    weights = 1 / -(numbers * np.log(beta)).expm1()
    return weights / weights.mean()
