import pytest
import torch
import torch.nn.functional as F

from l2t_ray.interfaces import UserError
from l2t_ray.students.resnet import ResNet, pool_to_grid


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    "depth, num_classes, options, expected",
    [
        (8, 10, {"widths": "wide"}, 1_235_274),  # the released L2T-DLN code
        (8, 100, {"widths": "wide"}, 1_327_524),
        (20, 10, {"widths": "wide"}, 4_335_434),
        (20, 100, {"widths": "wide"}, 4_427_684),
        (32, 10, {"widths": "wide"}, 7_435_594),
        (32, 100, {"widths": "wide"}, 7_527_844),
        (8, 10, {}, 78_042),
        (8, 10, {"shortcut": "pad"}, 75_290),  # He et al., option A
        (20, 10, {"shortcut": "pad"}, 269_722),
        (32, 10, {"shortcut": "pad"}, 464_154),
        (32, 10, {"shortcut": "pad", "norm": "group"}, 464_154),
    ],
)
def test_parameter_counts_are_the_published_ones(depth, num_classes, options, expected):
    with torch.device("meta"):
        assert count(ResNet(depth, num_classes=num_classes, **options)) == expected


@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_grid_equals_adaptive_pooling(side, size):
    maps = torch.randn(2, 3, size, size + 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pool_to_grid(maps, side), F.adaptive_avg_pool2d(maps, side))


def test_released_head_is_a_4x4_average_pool():
    maps = torch.randn(2, 256, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pool_to_grid(maps, 2), F.avg_pool2d(maps, 4))


def test_padded_shortcut_puts_the_old_channels_in_the_middle():
    block = ResNet(8, num_classes=10, shortcut="pad").blocks[1]
    x = torch.randn(1, 16, 6, 6, generator=torch.Generator().manual_seed(0))
    y = block._shortcut(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2]) and not y[:, :8].any() and not y[:, 24:].any()


@pytest.mark.parametrize("depth", [2, 10, 18])
def test_depth(depth):
    with pytest.raises(UserError, match=rf"student\.depth must be 6n \+ 2 .* got {depth}"):
        ResNet(depth, num_classes=10)


def test_image_too_small_for_the_released_head():
    with pytest.raises(UserError, match="feature map of 1x1 is too small"):
        ResNet(8, num_classes=10, widths="wide").eval()(torch.zeros(1, 3, 4, 4))
