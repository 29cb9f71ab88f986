"""PSPNet: its pooling and enlarging are PyTorch's, and it learns pixels."""

import pytest
import torch
import torch.nn.functional as F

from l2t_ray.interfaces import UserError
from l2t_ray.students.pspnet import PSPNet, enlarged, grid_means


@pytest.mark.parametrize(("height", "width"), [(16, 16), (13, 17), (6, 7), (4, 5)])
@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_means_over_windows_are_adaptive_pooling(height, width, side):
    maps = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(grid_means(maps, side), F.adaptive_avg_pool2d(maps, side))


@pytest.mark.parametrize("new", [(16, 16), (31, 50), (3, 40), (1, 1)])
def test_enlarging_is_bilinear(new):
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    expected = F.interpolate(maps, size=new, mode="bilinear", align_corners=False)
    torch.testing.assert_close(enlarged(maps, torch.Size(new)), expected)


def test_a_prediction_for_each_pixel_and_a_second_one_in_training():
    student, images = PSPNet(num_classes=5, width=8), torch.randn(2, 3, 33, 40)
    logits, auxiliary = student(images)
    assert logits.shape == auxiliary.shape == (2, 5, 33, 40)
    assert student.eval()(images).shape == (2, 5, 33, 40)
    assert PSPNet(num_classes=5, width=8, auxiliary=False)(images).shape == (2, 5, 33, 40)


def test_the_small_one_has_a_tenth_of_a_million_weights():
    total = sum(p.numel() for p in PSPNet(num_classes=11).parameters())
    assert 0.08e6 < total < 0.2e6


def test_every_weight_is_trained():
    torch.manual_seed(0)
    student = PSPNet(num_classes=3, width=8, in_channels=1, stride=8)
    logits, auxiliary = student(torch.randn(2, 1, 48, 48))
    (logits.square().mean() + auxiliary.square().mean()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


def test_another_stride_is_refused():
    with pytest.raises(UserError, match=r"student\.stride must be 4 or 8, got 5"):
        PSPNet(num_classes=2, stride=5)
