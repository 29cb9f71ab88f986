"""Forward correction (Patrini et al., CVPR 2017): cross-entropy through a matrix of label noise.

T[i, j] is the probability that an image of class i carries the label j. The loss is `-log sum_i p_i T[i, y]`: the
student's p is to explain the noisy label after it went through the noise, so the p that fits best is that of the clean
labels.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.core.student import RowLoss
from l2t_ray.interfaces import UserError
from l2t_ray.methods.parts import Parts
from l2t_ray.methods.schedules import SHU_2019, PaperSchedule
from l2t_ray.methods.settings import MethodSettings


class ForwardCorrectionConfig(MethodSettings):
    """Cross-entropy through the true noise matrix (Patrini et al. 2017): an oracle, for nobody knows that matrix."""

    paper_schedule: ClassVar[PaperSchedule | None] = SHU_2019

    name: Literal["forward_correction"] = "forward_correction"

    def fixed_loss(self, parts: Parts) -> RowLoss:
        """
        Raises:
            UserError: if the matrix is not known.
        """
        matrix = parts.labels.noise
        if matrix is None:
            raise UserError(
                "forward_correction is told the true noise matrix, and nobody knows that of labels of one's own; take "
                "method=recommended or glc, which estimate it."
            )
        return forward_correction(torch.from_numpy(matrix).to(parts.device))


def forward_corrected(
    logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"], matrix: Float[Tensor, "c c"]
) -> Float[Tensor, " n"]:
    """`-log sum_i softmax(logits)_i matrix[i, y]`, the cross-entropy where the matrix is the identity."""
    # In logarithms, since p underflows where the student is sure; log 0 = -inf drops out of the sum.
    return -(logits.log_softmax(dim=1) + matrix.log().T[labels]).logsumexp(dim=1)


def forward_correction(matrix: Float[Tensor, "c c"]) -> RowLoss:
    """The corrected loss with a matrix that is known, for `FixedLoss`."""
    return lambda logits, labels: forward_corrected(logits, labels, matrix.to(logits))
