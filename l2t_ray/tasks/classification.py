"""Image classification: a row is an image, the error is the mean cross-entropy."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from l2t_ray.interfaces import Batch, Metrics, Rows


class Classification:
    """The student's outputs are logits `[n, c]`, the targets class numbers `[n]`."""

    def rows(self, outputs: Float[Tensor, "n c"], batch: Batch) -> Rows:
        return Rows(outputs, batch.targets, batch.weights)

    def error(self, outputs: Float[Tensor, "n c"], batch: Batch) -> Float[Tensor, ""]:
        """This worker's share of the mean cross-entropy over the global batch."""
        return (batch.weights * F.cross_entropy(outputs, batch.targets, reduction="none")).sum()

    def score(self, outputs: Float[Tensor, "n c"], batch: Batch) -> Float[Tensor, "3"]:
        """Sums over the batch: correct answers, cross-entropy, images."""
        correct = (outputs.argmax(dim=1) == batch.targets).sum()
        error = F.cross_entropy(outputs, batch.targets, reduction="sum")
        return torch.stack((correct.float(), error.float(), correct.new_tensor(len(batch.targets)).float()))

    def summarise(self, totals: Float[Tensor, "3"]) -> Metrics:
        """Accuracy in percent and mean cross-entropy."""
        correct, error, count = totals.tolist()
        return {"test_accuracy": 100 * correct / count, "test_error": error / count}
