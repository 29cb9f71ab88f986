"""Boxes and the cells that predict them: decoding, overlap, and which cell is to answer for which box.

A cell is one anchor at one place of one scale's grid. Predictions of all scales lie behind each other, `N` in all:
finest scale first, then anchor, row, column. Boxes are x1, y1, x2, y2 in pixels of the student's input.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MAX_LOG_SIZE = 4.135166556742356
"""log(1000 / 16): no box is decoded larger than so much times its anchor (torchvision's bound)."""


class Cells(NamedTuple):
    """What each of the N predictions stands for."""

    corner: Float[Tensor, "N 2"]  # column and row of its grid
    stride: Float[Tensor, " N"]
    anchor: Float[Tensor, "N 2"]
    scale: Int[Tensor, " N"]


class Assigned(NamedTuple):
    """The r cells that have to answer for a box, and that box."""

    image: Int[Tensor, " r"]
    cell: Int[Tensor, " r"]
    box: Float[Tensor, "r 4"]
    label: Int[Tensor, " r"]


def cells_of(
    grids: Sequence[tuple[int, int]],
    strides: Sequence[int],
    anchors: Sequence[Sequence[tuple[float, float]]],
    like: Tensor,
) -> Cells:
    """The cells of grids (rows, columns) by scale."""
    corners, steps, sizes, scales = [], [], [], []
    for scale, ((rows, columns), stride, own) in enumerate(zip(grids, strides, anchors, strict=True)):
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        corner = torch.stack((column, row), dim=2).reshape(-1, 2).repeat(len(own), 1)
        corners.append(corner)
        steps.append(torch.full((len(corner),), float(stride)))
        sizes.append(torch.tensor(own, dtype=torch.float64).repeat_interleave(rows * columns, dim=0))
        scales.append(torch.full((len(corner),), scale))
    return Cells(
        torch.cat(corners).to(like),
        torch.cat(steps).to(like),
        torch.cat(sizes).to(like),
        torch.cat(scales).to(like.device),
    )


def decoded(offsets: Float[Tensor, "*n 4"], cells: Cells) -> Float[Tensor, "*n 4"]:
    """Boxes of raw offsets: centre (sigmoid(t) + cell's corner) stride, size anchor e^t."""
    centre = (offsets[..., :2].sigmoid() + cells.corner) * cells.stride[:, None]
    half = cells.anchor * offsets[..., 2:].clamp(max=MAX_LOG_SIZE).exp() / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def encoded(boxes: Float[Tensor, "r 4"], corner: Tensor, stride: Tensor, anchor: Tensor) -> Float[Tensor, "r 4"]:
    """What cells should say of these boxes: their place in the cell, 0 to 1, and the logarithm of size over anchor."""
    place = ((boxes[:, :2] + boxes[:, 2:]) / 2 / stride[:, None] - corner).clamp(0, 1)
    return torch.cat((place, ((boxes[:, 2:] - boxes[:, :2]) / anchor).log()), dim=1)


def area(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def intersection(a: Float[Tensor, "*n 4"], b: Float[Tensor, "*m 4"]) -> Tensor:
    """Of boxes that broadcast against each other."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    return (high - low).clamp(min=0).prod(dim=-1)


def iou(a: Float[Tensor, "*n 4"], b: Float[Tensor, "*m 4"]) -> Tensor:
    """Intersection over union of boxes that broadcast; 0 where neither has an area."""
    overlap = intersection(a, b)
    union = area(a) + area(b) - overlap
    return overlap / union.clamp(min=torch.finfo(union.dtype).tiny)


def is_object(
    boxes: Float[Tensor, "n m 4"], labels: Int[Tensor, "n m"], crowd: Bool[Tensor, "n m"]
) -> Bool[Tensor, "n m"]:
    """Which of the places for boxes hold one that a cell can answer for: a single object with an area."""
    return (labels >= 0) & ~crowd & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)


def cells_of_boxes(
    boxes: Float[Tensor, "n m 4"],
    grids: Sequence[tuple[int, int]],
    strides: Sequence[int],
    anchors: Sequence[Sequence[tuple[float, float]]],
) -> Int[Tensor, "n m"]:
    """The cell that is to answer for each box: of all anchors that whose size overlaps most with the box's, where the
    box's centre is, or the nearest cell to that."""
    sizes = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    flat = boxes.new_tensor([anchor for own in anchors for anchor in own])
    common = torch.minimum(sizes[:, :, None], flat).prod(dim=-1)
    best = (common / (sizes.prod(dim=-1)[..., None] + flat.prod(dim=-1) - common)).argmax(dim=-1)

    of_anchor, start = [], 0
    for own, stride, (rows, columns) in zip(anchors, strides, grids, strict=True):
        for _ in own:
            of_anchor.append((stride, rows, columns, start))
            start += rows * columns
    stride, rows, columns, start = best.new_tensor(of_anchor)[best].unbind(dim=-1)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 / stride[..., None]
    column = torch.minimum(centre[..., 0].floor().long().clamp(min=0), columns - 1)
    row = torch.minimum(centre[..., 1].floor().long().clamp(min=0), rows - 1)
    return start + row * columns + column


def assign(
    boxes: Float[Tensor, "n m 4"],
    labels: Int[Tensor, "n m"],
    crowd: Bool[Tensor, "n m"],
    cells: Int[Tensor, "n m"],
) -> Assigned:
    """The cells that have a box. Of several boxes with the same cell the last one has it (as in Darknet)."""
    real = is_object(boxes, labels, crowd)
    same = (cells[:, :, None] == cells[:, None, :]) & real[:, None, :]
    has_later = same.triu(diagonal=1).any(dim=2)
    image, place = (real & ~has_later).nonzero(as_tuple=True)
    return Assigned(image, cells[image, place], boxes[image, place], labels[image, place])


def overlaps_truth(
    predicted: Float[Tensor, "n N 4"],
    boxes: Float[Tensor, "n m 4"],
    labels: Int[Tensor, "n m"],
    crowd: Bool[Tensor, "n m"],
    threshold: float,
) -> Bool[Tensor, "n N"]:
    """Which predictions overlap with a box by more than the threshold, or lie in a crowd by as much of their area."""
    hit = torch.zeros(predicted.shape[:2], dtype=torch.bool, device=predicted.device)
    real = is_object(boxes, labels, crowd)
    for place in range(boxes.shape[1]):  # one by one: all pairs of a batch at once are gigabytes
        own = boxes[:, place, None]
        inside = intersection(predicted, own)
        own_area = area(predicted)
        union = own_area + area(own) - inside
        hit |= real[:, place, None] & (inside > threshold * union)
        hit |= (crowd & (labels >= 0))[:, place, None] & (inside > threshold * own_area)
    return hit
