"""Image classification: a row is an image, the error is the mean cross-entropy."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from l2t_ray.interfaces import Batch, Metrics, Rows


class Classification:
    """The student's outputs are logits `[n, c]`, the targets class numbers `[n]`.

    What is computed of logits in half precision is computed in single.
    """

    def rows(self, outputs: Float[Tensor, "n c"], batch: Batch) -> Rows:
        return Rows(_at_least_single(outputs), batch.targets, batch.weights)

    def error(self, outputs: Float[Tensor, "n c"], batch: Batch) -> Float[Tensor, ""]:
        """This worker's share of the mean cross-entropy over the global batch."""
        errors = F.cross_entropy(_at_least_single(outputs), batch.targets, reduction="none")
        return (batch.weights * errors).sum()

    def score(self, outputs: Float[Tensor, "n c"], batch: Batch) -> Float[Tensor, "3"]:
        """Sums over the batch: correct answers, cross-entropy, images."""
        correct = (outputs.argmax(dim=1) == batch.targets).sum()
        error = F.cross_entropy(_at_least_single(outputs), batch.targets, reduction="sum")
        return torch.stack((correct.float(), error.float(), correct.new_tensor(len(batch.targets)).float()))

    def summarise(self, totals: Float[Tensor, "3"]) -> Metrics:
        """Accuracy as a fraction, and mean cross-entropy."""
        correct, error, count = totals.tolist()
        return {"test_accuracy": correct / count, "test_error": error / count}


def _at_least_single(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
