"""The terms of YOLO-v3's loss, in the paper's form and in the one that people train with.

`paper`: Eqs. (28)-(30) of the supplement, with these repairs. (28) Its four squares are of sigmoid(t_x), sigmoid(t_y),
t_w and t_h against what decodes to the truth, and the factor is 2 - w h of the truth's width and height as shares of
the image: as printed, w and h are called offsets; cells and anchors run over all of the grid. (29) Prediction and label
are in the order of a cross-entropy: the text swaps them. (30) The confidence's square is of the sigmoid's output
against 1 where a box is and 0 elsewhere; predictions that overlap with a box by more than a threshold, but are not its
cell's, do not count (YOLO-v3); the printed sum has no such mask and leaves the label open.

`darknet`: binary cross-entropy for the place in the cell, for the confidence and for classes, half a square for the
logarithms of the size, the same factor: the gradients of Darknet's code, which gives target minus sigmoid at a logit.
"""

from typing import Literal, NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from l2t_ray.tasks.boxes import Assigned, Cells, encoded

DetectionLoss = Literal["darknet", "paper"]


class YoloTerms(NamedTuple):
    """Unweighed: of the r cells that have a box, and of all N as if they had none."""

    l_loc: Float[Tensor, " r"]
    l_cls: Float[Tensor, " r"]
    l_conf_object: Float[Tensor, " r"]
    l_conf_background: Float[Tensor, "n N"]


def yolo_terms(
    raw: Float[Tensor, "n N k"], assigned: Assigned, cells: Cells, image_area: int, form: DetectionLoss
) -> YoloTerms:
    """
    Args:
        image_area: of the student's input, in pixels.
    """
    own = raw[assigned.image, assigned.cell]
    stride, corner, anchor = (part[assigned.cell] for part in (cells.stride, cells.corner, cells.anchor))
    target = encoded(assigned.box, corner, stride, anchor)
    sides = assigned.box[:, 2:] - assigned.box[:, :2]
    factor = 2 - sides.prod(dim=1) / image_area
    classes = F.one_hot(assigned.label, raw.shape[2] - 5).to(raw)
    l_cls = _bce(own[:, 5:], classes).sum(dim=1)
    squares = (own[:, 2:4] - target[:, 2:]).square().sum(dim=1)
    if form == "paper":
        places = (own[:, :2].sigmoid() - target[:, :2]).square().sum(dim=1)
        return YoloTerms(
            factor * (places + squares), l_cls, (1 - own[:, 4].sigmoid()).square(), raw[..., 4].sigmoid().square()
        )
    places = _bce(own[:, :2], target[:, :2]).sum(dim=1)
    return YoloTerms(
        factor * (places + squares / 2),
        l_cls,
        _bce(own[:, 4], own.new_ones(len(own))),
        _bce(raw[..., 4], raw.new_zeros(raw.shape[:2])),
    )


def is_background(near_truth: Bool[Tensor, "n N"], assigned: Assigned) -> Bool[Tensor, "n N"]:
    """The predictions that should say that there is nothing."""
    has_box = near_truth.new_zeros(near_truth.shape)
    has_box[assigned.image, assigned.cell] = True
    return ~near_truth & ~has_box


def _bce(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")
