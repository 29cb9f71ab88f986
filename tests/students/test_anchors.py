"""Anchors are the sizes that boxes cluster around."""

import pytest
import torch

from l2t_ray.interfaces import UserError
from l2t_ray.students.anchors import PUBLISHED, anchors_of, by_scale, size_iou


def boxes(sizes, each=40, spread=0.05, seed=0):
    g = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(sizes).repeat_interleave(each, dim=0)
    sizes = sizes * (1 + spread * torch.randn(sizes.shape, generator=g))
    corners = 100 * torch.rand(sizes.shape, generator=g)
    return torch.cat((corners, corners + sizes), dim=1)


SIZES = [[10.0, 12.0], [30.0, 15.0], [20.0, 60.0], [90.0, 80.0]]


def test_anchors_are_the_sizes_of_clusters_smallest_first():
    found = anchors_of(boxes(SIZES), 4)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(SIZES), rtol=0.03, atol=0)
    assert found == anchors_of(boxes(SIZES), 4) != anchors_of(boxes(SIZES, seed=1), 4)


def test_each_anchor_is_the_mean_of_the_sizes_nearest_to_it_by_overlap():
    given = boxes(SIZES, spread=0.4)
    anchors = torch.tensor(anchors_of(given, 3)).double()
    sizes = (given[:, 2:] - given[:, :2]).double()
    sizes = sizes[(sizes > 0).all(dim=1)]
    nearest = torch.tensor([max(range(3), key=lambda k: plain_iou(size, anchors[k])) for size in sizes])
    for k in range(3):
        torch.testing.assert_close(sizes[nearest == k].mean(dim=0), anchors[k], rtol=0, atol=1e-3)


def plain_iou(a, b):
    overlap = min(a[0], b[0]) * min(a[1], b[1])
    return (overlap / (a[0] * a[1] + b[0] * b[1] - overlap)).item()


def test_overlap_of_sizes_is_that_of_boxes_with_one_centre():
    a, b = torch.tensor([[2.0, 4.0], [3.0, 3.0]]), torch.tensor([[4.0, 2.0], [3.0, 3.0], [1.0, 1.0]])
    expected = [[plain_iou(x, y) for y in b] for x in a]
    torch.testing.assert_close(size_iou(a, b), torch.tensor(expected))


def test_boxes_without_area_do_not_count():
    flat = torch.tensor([[5.0, 5.0, 5.0, 9.0], [7.0, 7.0, 3.0, 3.0]])
    assert anchors_of(torch.cat((boxes(SIZES), flat)), 4) == anchors_of(boxes(SIZES), 4)
    with pytest.raises(UserError, match="3 anchors need boxes of as many sizes, and there are 0"):
        anchors_of(flat, 3)


def test_published_anchors_are_three_a_scale():
    assert by_scale(PUBLISHED["darknet53"], 3)[2] == ((116, 90), (156, 198), (373, 326))
    assert by_scale(PUBLISHED["tiny"], 2)[0] == ((10, 14), (23, 27), (37, 58))
