import pytest
import torch

from l2t_ray.interfaces import UserError
from l2t_ray.students.wide_resnet import WideResNet


@pytest.mark.parametrize("depth, widen, expected", [(28, 10, 36_479_194), (16, 4, 2_748_890)])
def test_parameter_counts_are_the_published_ones(depth, widen, expected):
    with torch.device("meta"):
        net = WideResNet(depth, widen, num_classes=10)
    assert sum(p.numel() for p in net.parameters()) == expected


def test_impossible_shapes():
    with pytest.raises(UserError, match=r"student\.depth must be 6n \+ 4 .* got 20"):
        WideResNet(20, 4, num_classes=10)
    with pytest.raises(UserError, match=r"student\.width_factor must be from 1 to 1024, got 0"):
        WideResNet(16, 0, num_classes=10)
