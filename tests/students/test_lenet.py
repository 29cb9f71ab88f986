import pytest

from l2t_ray.interfaces import UserError
from l2t_ray.students.lenet import LeNet


def test_shape_on_mnist():
    net = LeNet(num_classes=10)
    assert [tuple(p.shape) for p in net.parameters() if p.ndim > 1] == [
        *((20, 1, 5, 5), (50, 20, 5, 5)),
        *((500, 800), (10, 500)),
    ]


def test_images_too_small():
    with pytest.raises(UserError, match="4x4 or more, got 3x3"):
        LeNet(num_classes=10, image_size=3)
