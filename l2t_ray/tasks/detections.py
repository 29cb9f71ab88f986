"""Which predictions are given as boxes: sure enough, and not the double of a surer one of the same class."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.extras import needed_by

MIN_SCORE, MAX_OVERLAP, MAX_BEFORE, MAX_BOXES = 0.001, 0.45, 1000, 100
"""YOLO-v3's threshold of scores and of overlap; most boxes of an image before and after the suppression (COCO)."""


class Survivors(NamedTuple):
    """Boxes that are left, image by image, surest first."""

    image: Int[Tensor, " d"]
    cell: Int[Tensor, " d"]
    label: Int[Tensor, " d"]
    logit: Float[Tensor, " d"]


def score_logit(there: Float[Tensor, "*n"], label: Float[Tensor, "*m"]) -> Tensor:
    """The logit of sigmoid(there) sigmoid(label), the score of a box, exact where either is sure. They broadcast."""
    both = torch.broadcast_tensors(-there, -label, -there - label)
    return -torch.stack(both).logsumexp(dim=0)


@torch.no_grad()
def survivors(predicted: Float[Tensor, "n N 4"], answers: Float[Tensor, "n N k"]) -> Survivors:
    """
    Args:
        answers: the logit of there being an object, and the classes'.
    """
    with needed_by("a detector"):
        from torchvision.ops import batched_nms  # heavy, and only detectors need it

    logits = score_logit(answers[..., :1], answers[..., 1:])
    least = torch.tensor(MIN_SCORE).logit().item()
    images, cells, labels, kept = [], [], [], []
    for number, (boxes, own) in enumerate(zip(predicted, logits, strict=True)):
        top, places = own.flatten().topk(min(MAX_BEFORE, own.numel()))
        places = places[top > least]
        cell, label, logit = places // own.shape[1], places % own.shape[1], own.flatten()[places]
        left = batched_nms(boxes[cell], logit, label, MAX_OVERLAP)[:MAX_BOXES]
        images.append(torch.full_like(left, number))
        cells.append(cell[left])
        labels.append(label[left])
        kept.append(logit[left])
    return Survivors(*(torch.cat(parts) for parts in (images, cells, labels, kept)))
