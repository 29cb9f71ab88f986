"""Anchors: the sizes of boxes that a detector's predictions are relative to."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.interfaces import UserError

Anchor = tuple[float, float]
"""Width and height in pixels."""

KMEANS = "kmeans"
"""In place of sizes: those that follow from the boxes of the training part."""

PUBLISHED: dict[str, tuple[Anchor, ...]] = {
    "darknet53": (
        *((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
        *((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
        *((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
    ),
    "tiny": ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0), (81.0, 82.0), (135.0, 169.0), (344.0, 319.0)),
}
"""Of YOLO-v3's configurations, for images of 416 pixels (COCO), the finest scale's first."""

_NUM_STARTS, _NUM_ROUNDS = 10, 300


def by_scale(anchors: Sequence[Anchor], num_scales: int) -> tuple[tuple[Anchor, ...], ...]:
    """As many anchors for each scale, in their order.

    Raises:
        UserError: if they do not divide, or are no sizes.
    """
    if not anchors or len(anchors) % num_scales:
        raise UserError(
            f"student.anchors must be as many for each of {num_scales} scales, got {len(anchors)} in all; give "
            f"{3 * num_scales}, or none for the published ones."
        )
    for anchor in anchors:
        if len(anchor) != 2 or not all(0 < side < float("inf") for side in anchor):
            raise UserError(f"student.anchors must be pairs of a width and a height above 0, got {list(anchor)}.")
    each = len(anchors) // num_scales
    return tuple(tuple(anchors[k * each : (k + 1) * each]) for k in range(num_scales))


def anchors_of(boxes: Float[Tensor, "n 4"], num_anchors: int, *, seed: int = 0) -> tuple[Anchor, ...]:
    """k-means of boxes' sizes under the distance 1 - IoU (sizes laid over each other), smallest area first.

    The best of ten starts, each from boxes that differ in size; a cluster's centre is its mean size. Boxes without an
    area do not count.

    Args:
        boxes: x1, y1, x2, y2 in pixels of the images that the student gets.

    Raises:
        UserError: if there are fewer sizes than anchors.
    """
    # Of boxes that rounding alone tells apart there is one size: starts are drawn from different ones.
    sizes = (boxes[:, 2:] - boxes[:, :2]).double().round(decimals=3)
    sizes = sizes[(sizes > 0).all(dim=1) & sizes.isfinite().all(dim=1)]
    different = sizes.unique(dim=0)
    if len(different) < num_anchors:
        raise UserError(
            f"{num_anchors} anchors need boxes of as many sizes, and there are {len(different)}; give student.anchors, "
            "or more boxes."
        )
    generator = torch.Generator().manual_seed(seed)
    found = [_clustered(sizes, different, num_anchors, generator) for _ in range(_NUM_STARTS)]
    _, centres = max(found, key=lambda pair: pair[0])
    order = centres.prod(dim=1).argsort()
    return tuple((width, height) for width, height in centres[order].tolist())


def _clustered(
    sizes: Float[Tensor, "n 2"], different: Float[Tensor, "d 2"], num: int, generator: torch.Generator
) -> tuple[float, Float[Tensor, "k 2"]]:
    """The mean IoU of sizes with their centres, and the centres."""
    centres = different[torch.randperm(len(different), generator=generator)[:num]]
    nearest = torch.full((len(sizes),), -1)
    for _ in range(_NUM_ROUNDS):
        before, nearest = nearest, size_iou(sizes, centres).argmax(dim=1)
        if torch.equal(before, nearest):
            break
        counts = torch.bincount(nearest, minlength=num)
        sums = torch.zeros_like(centres).index_add(0, nearest, sizes)
        # A centre that nothing is near to stays where it is.
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
    return size_iou(sizes, centres).amax(dim=1).mean().item(), centres


def size_iou(sizes: Float[Tensor, "n 2"], others: Float[Tensor, "m 2"]) -> Float[Tensor, "n m"]:
    """Intersection over union of boxes with the same centre."""
    overlap = torch.minimum(sizes[:, None], others[None]).prod(dim=2)
    return overlap / (sizes.prod(dim=1)[:, None] + others.prod(dim=1)[None] - overlap)
