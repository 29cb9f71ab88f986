"""PSPNet on torchvision's ResNets."""

import pytest
import torch
from torchvision.models import resnet50

from l2t_ray.interfaces import UserError
from l2t_ray.students.pspnet_resnet import pspnet_resnet


def test_it_predicts_each_pixel_from_an_eighth_of_the_size_and_keeps_torchvisions_names():
    student, sizes = pspnet_resnet(50, num_classes=5, in_channels=3, image_size=33), []
    student.backbone.layer4.register_forward_hook(lambda module, given, maps: sizes.append(maps.shape[2:]))
    images = torch.randn(2, 3, 33, 40)
    logits, auxiliary = student(images)
    assert logits.shape == auxiliary.shape == (2, 5, 33, 40) and sizes == [(5, 5)]
    assert student.eval()(images).shape == (2, 5, 33, 40)
    with torch.device("meta"):
        names = resnet50().state_dict().keys()
    assert names - {"fc.weight", "fc.bias"} == student.backbone.state_dict().keys()


def test_images_of_one_channel_are_refused():
    with pytest.raises(
        UserError, match=r"pspnet_resnet101 takes images of 3 channels, and these have 1; set student.name"
    ):
        pspnet_resnet(101, num_classes=5, in_channels=1, image_size=33)
