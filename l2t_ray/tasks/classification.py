"""Image classification: a row is an image, the error is the mean cross-entropy."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.headline import ACCURACY, ERROR
from l2t_ray.interfaces import Batch, Group, Metrics, Rows, Terms


class Classification:
    """The student's outputs are logits `[n, c]`, the targets class numbers `[n]`.

    What is computed of logits in half precision is computed in single.
    """

    name = "classification"
    metrics = (ACCURACY, ERROR)
    kinds: Mapping[str, Sequence[str]] = {}
    row_is_example = True

    def num_rows(self, targets: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        return torch.ones_like(targets)

    def terms(self, outputs: Float[Tensor, "n c"], batch: Batch) -> Terms:
        owner, logits = torch.arange(len(outputs), device=outputs.device), _at_least_single(outputs)
        return Terms(logits, Rows(logits, batch.targets, batch.weights, owner))

    def error(self, outputs: Float[Tensor, "n c"], batch: Batch, group: Group) -> Float[Tensor, ""]:
        """This worker's share of the mean cross-entropy over the global batch."""
        del group
        return (batch.weights * F.cross_entropy(_at_least_single(outputs), batch.targets, reduction="none")).sum()

    def score(self, outputs: Float[Tensor, "n c"], batch: Batch) -> Float[Tensor, "3"]:
        """Sums over the batch: correct answers, cross-entropy, images."""
        correct = (outputs.argmax(dim=1) == batch.targets).sum()
        error = F.cross_entropy(_at_least_single(outputs), batch.targets, reduction="sum")
        return torch.stack((correct.float(), error.float(), correct.new_tensor(len(batch.targets)).float()))

    def summarise(self, totals: Float[Tensor, "3"]) -> Metrics:
        """Accuracy as a fraction, and mean cross-entropy."""
        correct, error, count = totals.tolist()
        return {"accuracy": correct / count, "error": error / count}


def _at_least_single(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
