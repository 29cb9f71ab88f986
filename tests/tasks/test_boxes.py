"""Decoding, overlap and assignment against a plain rendering, box by box, of the equations."""

import math

import pytest
import torch

from l2t_ray.tasks.boxes import assign, cells_of, cells_of_boxes, decoded, encoded, iou, overlaps_truth

STRIDES, ANCHORS = (8, 16), (((6.0, 9.0), (12.0, 7.0)), ((20.0, 24.0), (40.0, 30.0)))
H, W = 64, 96
GRIDS = tuple((H // s, W // s) for s in STRIDES)


def plain_cells():
    """(stride, anchor, row, column) of each prediction, in order."""
    return [
        (s, a, j, i)
        for s, own in zip(STRIDES, ANCHORS, strict=True)
        for a in own
        for j in range(H // s)
        for i in range(W // s)
    ]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def plain_decode(t, cell):
    s, (aw, ah), j, i = cell
    x, y, w, h = (sigmoid(t[0]) + i) * s, (sigmoid(t[1]) + j) * s, aw * math.exp(t[2]), ah * math.exp(t[3])
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def plain_iou(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union else 0.0


def plain_assign(boxes, labels, crowd):
    """By image, the box of each cell that has one."""
    cells, found = plain_cells(), []
    for n in range(len(boxes)):
        own = {}
        for box, label, is_crowd in zip(boxes[n].tolist(), labels[n].tolist(), crowd[n].tolist(), strict=True):
            w, h = box[2] - box[0], box[3] - box[1]
            if label < 0 or is_crowd or w <= 0 or h <= 0:
                continue
            flat = [(s, a) for s, of_scale in zip(STRIDES, ANCHORS, strict=True) for a in of_scale]
            s, a = max(flat, key=lambda pair: plain_iou([0, 0, w, h], [0, 0, *pair[1]]))
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            i, j = min(max(int(x // s), 0), W // s - 1), min(max(int(y // s), 0), H // s - 1)
            own[cells.index((s, a, j, i))] = (box, label)
        found.append(own)
    return found


def truths(n=3, m=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    centre = torch.rand(n, m, 2, generator=g, dtype=torch.float64) * torch.tensor([W, H])
    size = 4 + 40 * torch.rand(n, m, 2, generator=g, dtype=torch.float64) ** 2
    boxes = torch.cat((centre - size / 2, centre + size / 2), dim=2)
    labels = torch.randint(-1, 3, (n, m), generator=g)
    crowd = torch.rand(n, m, generator=g) < 0.1
    boxes[0, 3] = boxes[0, 2] + 0.25  # the same cell, later
    labels[0, 2:4], crowd[0, 2:4] = torch.tensor([1, 2]), False
    boxes[1, 0, 2], labels[1, 0] = boxes[1, 0, 0], 0  # no area
    boxes[2, 1], labels[2, 1], crowd[2, 1] = torch.tensor([90.0, -8.0, 110.0, 4.0]), 1, False  # centre outside
    return boxes, labels, crowd


def assigned(boxes, labels, crowd):
    return assign(boxes, labels, crowd, cells_of_boxes(boxes, GRIDS, STRIDES, ANCHORS))


def test_predictions_are_decoded_by_the_equations():
    cells = cells_of(GRIDS, STRIDES, ANCHORS, torch.zeros(1).double())
    raw = torch.randn(2, len(plain_cells()), 4, generator=torch.Generator().manual_seed(1)).double()
    expected = [[plain_decode(t, cell) for t, cell in zip(own, plain_cells(), strict=True)] for own in raw.tolist()]
    torch.testing.assert_close(decoded(raw, cells), torch.tensor(expected).double())
    assert cells.scale.tolist() == [STRIDES.index(s) for s, *_ in plain_cells()]


def test_what_a_cell_should_say_decodes_to_its_box():
    found, cells = (
        assigned(*truths()),
        cells_of(GRIDS, STRIDES, ANCHORS, torch.zeros(1).double()),
    )
    inside = (found.box[:, 2] + found.box[:, 0] < 2 * W) & (found.box[:, 1] + found.box[:, 3] > 0)
    where = found.cell[inside]
    own = type(cells)(*(part[where] for part in cells))
    target = encoded(found.box[inside], own.corner, own.stride, own.anchor)
    raw = torch.cat((target[:, :2].logit(), target[:, 2:]), dim=1)
    torch.testing.assert_close(decoded(raw, own), found.box[inside])


def test_each_box_has_the_cell_that_a_plain_search_finds():
    found, expected = assigned(*truths()), plain_assign(*truths())
    actual = [{} for _ in expected]
    for image, cell, box, label in zip(*(part.tolist() for part in found), strict=True):
        actual[image][cell] = (box, label)
    assert actual == expected and sum(map(len, expected)) > 15
    assert len(found.cell) == sum(map(len, actual))  # a cell has one box


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_predictions_near_a_truth_are_no_background(threshold):
    boxes, labels, crowd = truths()
    g = torch.Generator().manual_seed(2)
    predicted = (boxes.repeat(1, 10, 1) + 4 * torch.randn(3, 120, 4, generator=g)).double()
    predicted[..., 2:] = torch.maximum(predicted[..., 2:], predicted[..., :2] + 1)
    expected = []
    for n in range(3):
        for p in predicted[n].tolist():
            near = False
            for box, label, is_crowd in zip(boxes[n].tolist(), labels[n].tolist(), crowd[n].tolist(), strict=True):
                w, h = min(p[2], box[2]) - max(p[0], box[0]), min(p[3], box[3]) - max(p[1], box[1])
                share = max(w, 0) * max(h, 0) / ((p[2] - p[0]) * (p[3] - p[1]))
                flat = box[2] <= box[0] or box[3] <= box[1]
                overlap = share if is_crowd else 0 if flat else plain_iou(p, box)
                near |= label >= 0 and overlap > threshold
            expected.append(near)
    found = overlaps_truth(predicted, boxes, labels, crowd, threshold).flatten().tolist()
    assert found == expected and 20 < sum(expected) < 340


def test_overlap_of_boxes_without_area_is_zero_and_has_a_finite_slope():
    flat = torch.zeros(2, 4, requires_grad=True)
    value = iou(flat, torch.tensor([[0.0, 0, 0, 0], [1, 1, 2, 2]]))
    (slope,) = torch.autograd.grad(value.sum(), flat)
    assert value.tolist() == [0, 0] and slope.isfinite().all()
