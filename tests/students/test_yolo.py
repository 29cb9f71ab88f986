"""YOLO-v3: the published networks at width 1, and one prediction for each anchor of each cell."""

import pytest
import torch
from torch import nn

from l2t_ray.interfaces import UserError
from l2t_ray.students.yolo import Yolo, upsampled


def numbers_of_a_weight_file(student):
    """Darknet's files hold weights, biases and the running statistics, without counters."""
    buffers = sum(b.numel() for b in student.buffers() if b.is_floating_point())
    return sum(p.numel() for p in student.parameters()) + buffers


@pytest.mark.parametrize(
    ("depth", "num_parameters", "bytes_of_file"),
    [("darknet53", 61_949_149, 248_007_048), ("tiny", 8_852_366, 35_434_956)],
)
def test_weights_are_as_many_as_in_the_published_networks(depth, num_parameters, bytes_of_file):
    with torch.device("meta"):
        student = Yolo(num_classes=80, depth=depth)
    assert sum(p.numel() for p in student.parameters()) == num_parameters
    assert 20 + 4 * numbers_of_a_weight_file(student) == bytes_of_file  # a header of 20 bytes


def test_darknet_has_the_published_channels():
    """Of the configuration file: 52 convolutions before the heads, and 23 in them and on the ways between."""
    with torch.device("meta"):
        student = Yolo(num_classes=80)
    body = [m.out_channels for m in student.body.modules() if isinstance(m, nn.Conv2d)]
    stages = [(64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)]
    assert body == [32, *(c for full, blocks in stages for c in (full, *(full // 2, full) * blocks))]
    heads = [m.out_channels for m in student.heads.modules() if isinstance(m, nn.Conv2d)]
    expected = [*(512, 1024) * 3, 255, 256, *(256, 512) * 3, 255, 128, *(128, 256) * 3, 255]
    assert sorted(heads) == sorted(expected) and len(body) + len(heads) == 75


@pytest.mark.parametrize(
    ("depth", "halved", "strides"),
    [
        ("darknet53", False, (8, 16, 32)),
        ("tiny", False, (16, 32)),
        ("tiny", True, (8, 16)),
        ("darknet53", True, (4, 8, 16)),
    ],
)
def test_predictions_are_those_of_each_anchor_and_cell(depth, halved, strides):
    student = Yolo(num_classes=2, depth=depth, width=0.05, halved=halved)
    assert student.strides == strides
    outputs = student(torch.randn(2, 3, 64, 96))
    assert [tuple(raw.shape) for raw in outputs] == [(2, 3, 64 // s, 96 // s, 7) for s in strides]


def test_cells_see_where_they_are():
    """A change in one corner changes the predictions of the cells there most."""
    torch.manual_seed(0)
    student = Yolo(num_classes=2, depth="tiny", width=0.125).eval()
    images = torch.rand(1, 3, 128, 128)
    changed = images.clone()
    changed[:, :, :16, 112:] += 1
    fine = (student(changed)[0] - student(images)[0])[0].abs().sum(dim=(0, 3))
    assert fine.argmax().item() % 8 >= 6 and fine.argmax().item() // 8 <= 1


@pytest.mark.parametrize("depth", ["darknet53", "tiny"])
def test_every_weight_is_trained(depth):
    torch.manual_seed(0)
    student = Yolo(num_classes=2, depth=depth, width=0.05, in_channels=1, norm="group")
    sum(raw.square().mean() for raw in student(torch.randn(2, 1, 64, 64))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


def test_enlarging_repeats_each_value():
    assert upsampled(torch.tensor([[[[1.0, 2.0]]]])).tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2]]]]


def test_sides_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match=r"64x80 pixels do not divide into cells of 32; take sides that are multiples"):
        Yolo(num_classes=2, depth="tiny", width=0.05)(torch.zeros(1, 3, 64, 80))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"width": 0.0}, r"student\.width must be a number above 0, got 0\.0"),
        ({"anchors": ((3.0, 4.0),)}, r"student\.anchors must be as many for each of 2 scales, got 1 in all; give 6"),
        ({"anchors": ((3.0, 4.0), (0.0, 4.0))}, r"pairs of a width and a height above 0, got \[0\.0, 4\.0\]"),
    ],
)
def test_settings_of_no_network_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Yolo(num_classes=2, depth="tiny", **settings)
