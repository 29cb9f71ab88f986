"""An average precision that can be differentiated: what a detector's loss is judged by.

Which boxes survive the suppression of double ones, and which truth each belongs to, is constant; their scores' logits
and their overlaps are live. With TP_t(i) = sigmoid((IoU_i - t) / 0.05) for the box i of a truth, and the soft rank
H_ij = sigmoid((s_j - s_i) / 0.5) of the boxes of its class,

    AP_t = mean over truths i of TP_t(i) (TP_t(i) + sum_j H_ij TP_t(j)) / (1 + sum_j H_ij),

where the upper sum is over boxes of truths and the lower one over all. Of 26 trainings of one form this error followed
the final average precision with r = -.97, the loss itself with -.19.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from l2t_ray.tasks.boxes import area, intersection, iou, is_object
from l2t_ray.tasks.detections import score_logit, survivors

_IOU_WIDTH, _LOGIT_WIDTH, _MATCH = 0.05, 0.5, 0.5


def judged(
    predicted: Float[Tensor, "n N 4"],
    answers: Float[Tensor, "n N k"],
    boxes: Float[Tensor, "n m 4"],
    labels: Int[Tensor, "n m"],
    crowd: Bool[Tensor, "n m"],
    cells: Int[Tensor, "n m"],
) -> Float[Tensor, "rows 4"]:
    """A row for each box that is judged: class, whether it is that of a truth, logit of its score, overlap with it.

    Each truth has one row. Boxes take truths of their class in the order of their scores, from an overlap of 0.5; a
    truth that is left takes the free box that it overlaps with most, or if there is none the prediction of its cell.

    Args:
        answers: the logit of there being an object, and the classes'.
        cells: of each truth, the cell that is to answer for it.
    """
    left = survivors(predicted.detach(), answers.detach())
    with torch.no_grad():
        truth = boxes[left.image]
        own = predicted.detach()[left.image, left.cell][:, None]
        is_same = labels[left.image] == left.label[:, None]
        real = is_object(boxes, labels, crowd)
        overlaps = torch.where(is_same & real[left.image], iou(own, truth), 0)
        in_crowd = intersection(own, truth) > _MATCH * area(own)
        in_crowd = (is_same & crowd[left.image] & in_crowd).any(dim=1)
    rows = []
    overlaps_of, crowd_of, real_of = overlaps.cpu().numpy(), in_crowd.cpu().numpy(), real.cpu().numpy()
    images, found_cells, found_labels = left.image.cpu().numpy(), left.cell.tolist(), left.label.tolist()
    labels_of, cells_of = labels.cpu().numpy(), cells.cpu().numpy()
    for n in range(len(boxes)):
        numbers = np.flatnonzero(images == n)
        truth_of = _matched(overlaps_of[numbers], real_of[n])
        for number, place in zip(numbers.tolist(), truth_of, strict=True):
            if place >= 0 or not crowd_of[number]:
                rows.append((n, found_cells[number], found_labels[number], place))
        for place in sorted(set(np.flatnonzero(real_of[n]).tolist()) - set(truth_of)):
            rows.append((n, int(cells_of[n, place]), int(labels_of[n, place]), place))
    image, cell, label, place = labels.new_tensor(rows).reshape(-1, 4).unbind(dim=1)
    has_truth = place >= 0
    answer = answers[image, cell]
    logit = score_logit(answer[:, 0], answer[:, 1:].gather(1, label[:, None])[:, 0])
    overlap = iou(predicted[image, cell], boxes[image, place.clamp(min=0)]) if boxes.shape[1] else logit * 0
    return torch.stack((label.to(logit), has_truth.to(logit), logit, overlap * has_truth), dim=1)


def _matched(overlaps: np.ndarray, real: np.ndarray) -> list[int]:
    """The truth of each box `[d, m]` of an image, surest first; -1: it has none."""
    truth_of, free = np.full(len(overlaps), -1), real.copy()
    for number in np.flatnonzero((overlaps >= _MATCH).any(axis=1)).tolist():  # no other box can take one
        own = np.where(free, overlaps[number], -1)
        best = int(own.argmax())
        if own[best] >= _MATCH:
            truth_of[number], free[best] = best, False
    for place in np.flatnonzero(free).tolist():
        left = np.where(truth_of < 0, overlaps[:, place], 0)
        if (left > 0).any():
            truth_of[left.argmax()] = place
    return truth_of.tolist()


def soft_error(rows: Float[Tensor, "rows 4"], thresholds: Sequence[float]) -> Float[Tensor, ""]:
    """One minus the soft average precision, mean over thresholds and over the classes that have truths; 0 where there
    are none."""
    label, is_truth, logit, overlap = rows.unbind(dim=1)
    own = (is_truth > 0).nonzero()[:, 0]
    if not len(own):
        return rows.sum() * 0
    is_other = (label[own, None] == label) & (own[:, None] != torch.arange(len(rows), device=rows.device))
    ahead = ((logit - logit[own, None]) / _LOGIT_WIDTH).sigmoid() * is_other
    levels = rows.new_tensor(thresholds)
    hits = ((overlap[own, None] - levels) / _IOU_WIDTH).sigmoid()
    precision = (hits + ahead[:, own] @ hits) / (1 + ahead.sum(dim=1, keepdim=True))
    same = (label[own, None] == label[own]).to(rows)
    num_classes = label[own].unique().numel()
    # A truth counts one over those of its class.
    return 1 - ((hits * precision).mean(dim=1) / same.sum(dim=1)).sum() / num_classes
