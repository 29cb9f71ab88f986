"""The terms of segmentation's loss, each computed from the pixels of one head: what `terms` of the task is made of."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from l2t_ray.interfaces import Rows, Term

SegmentationTerm = Literal[
    "cross_entropy", "focal", "boundary", "jaccard", "dice", "minibatch_jaccard", "minibatch_dice"
]

FOCAL_POWER = 2.0
"""gamma, how fast pixels that are right already lose their say (paper: 2)."""
TINY = 1e-6
"""Least denominator of an overlap."""


class Pixels(NamedTuple):
    """The rows of one head.

    Attributes:
        rows: the pixels that are trained on.
        is_border: which of them touch another class; None: no term asks (`READ_BORDERS`).
        num_examples: n, images of the minibatch.
    """

    rows: Rows
    is_border: Bool[Tensor, " r"] | None
    num_examples: int


def touching(mask: Int[Tensor, "n h w"], ignore: int) -> Bool[Tensor, "n h w"]:
    """Which pixels have another class above, below or beside them. What does not count is no class."""
    found = torch.zeros_like(mask, dtype=torch.bool)
    for here, there in ((found[:, 1:], found[:, :-1]), (found[:, :, 1:], found[:, :, :-1])):
        one, other = (mask[:, 1:], mask[:, :-1]) if here.shape[1] < mask.shape[1] else (mask[:, :, 1:], mask[:, :, :-1])
        differ = (one != other) & (one != ignore) & (other != ignore)
        here |= differ
        there |= differ
    return found


def focal_loss(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """`(1 - p_y)^2 * -log p_y` with p the softmax (Lin et al., ICCV 2017; smp's `softmax_focal_loss_with_logits`)."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (-torch.expm1(-losses)) ** FOCAL_POWER * losses


def _cross_entropy(pixels: Pixels) -> Term:
    """Of each pixel; a kind a class."""
    rows = pixels.rows
    return Term(F.cross_entropy(rows.logits, rows.labels, reduction="none"), rows.weights, rows.labels, rows.owner)


def _focal(pixels: Pixels) -> Term:
    rows = pixels.rows
    return Term(focal_loss(rows.logits, rows.labels), rows.weights, torch.zeros_like(rows.owner), rows.owner)


def _boundary(pixels: Pixels) -> Term:
    """The cross-entropy of pixels that touch another class."""
    rows, here = pixels.rows, pixels.is_border
    assert here is not None
    values = F.cross_entropy(rows.logits[here], rows.labels[here], reduction="none")
    return Term(values, rows.weights[here], torch.zeros_like(rows.owner[here]), rows.owner[here])


def _jaccard(pixels: Pixels) -> Term:
    """One minus each image's mean over its classes of p.t / (p + t - p.t), sums over its rows."""
    return _overlap(pixels, jaccard)


def _dice(pixels: Pixels) -> Term:
    """As `_jaccard`, of 2 p.t / (p + t)."""
    return _overlap(pixels, dice)


def _minibatch_jaccard(pixels: Pixels) -> Term:
    """As `_jaccard`, with sums over all rows of this worker's slice: a loss that each of its images has."""
    return _overlap(pixels, jaccard, is_of_all=True)


def _minibatch_dice(pixels: Pixels) -> Term:
    return _overlap(pixels, dice, is_of_all=True)


def jaccard(hits: Tensor, answers: Tensor, truths: Tensor) -> Tensor:
    return hits / (answers + truths - hits).clamp(min=TINY)


def dice(hits: Tensor, answers: Tensor, truths: Tensor) -> Tensor:
    return 2 * hits / (answers + truths).clamp(min=TINY)


def _overlap(pixels: Pixels, ratio_of: Callable[[Tensor, Tensor, Tensor], Tensor], *, is_of_all: bool = False) -> Term:
    rows, num_examples = pixels.rows, pixels.num_examples
    p = rows.logits.softmax(dim=1)
    truth = F.one_hot(rows.labels, p.shape[1]).to(p)
    whole, num_wholes = (torch.zeros_like(rows.owner), 1) if is_of_all else (rows.owner, num_examples)
    zeros = p.new_zeros(num_wholes, p.shape[1])
    hits, answers, truths = (zeros.index_add(0, whole, part) for part in (p * truth, p, truth))
    present = truths > 0
    ratio = torch.where(present, ratio_of(hits, answers, truths), 0)
    values = 1 - ratio.sum(dim=1) / present.sum(dim=1).clamp(min=1)
    weights = rows.weights.new_zeros(num_examples).index_add(0, rows.owner, rows.weights)
    owner = torch.arange(num_examples, device=p.device)
    return Term(values.expand(num_examples), weights, torch.zeros_like(owner), owner)


TERMS: Mapping[SegmentationTerm, Callable[[Pixels], Term]] = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "boundary": _boundary,
    "jaccard": _jaccard,
    "dice": _dice,
    "minibatch_jaccard": _minibatch_jaccard,
    "minibatch_dice": _minibatch_dice,
}
READ_BORDERS: frozenset[SegmentationTerm] = frozenset({"boundary"})
