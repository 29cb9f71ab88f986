"""The students that a configuration knows by name: one line each.

A student is a function `make(*, num_classes, in_channels, image_size, ...)` that gives a `torch.nn.Module`. Its other
keyword arguments are its settings: their names, types and defaults are those of the configuration's section `student`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from l2t_ray.students.lenet import lenet
from l2t_ray.students.pspnet import pspnet
from l2t_ray.students.pspnet_resnet import pspnet_resnet
from l2t_ray.students.resnet import resnet
from l2t_ray.students.wide_resnet import wide_resnet
from l2t_ray.students.yolo import yolo

MakeStudent = Callable[..., Any]

STUDENTS: Mapping[str, MakeStudent] = {
    "resnet8": partial(resnet, 8),
    "resnet20": partial(resnet, 20),
    "resnet32": partial(resnet, 32),
    "wide_resnet": wide_resnet,
    "lenet": lenet,
    "pspnet": pspnet,
    "pspnet_resnet50": partial(pspnet_resnet, 50),
    "pspnet_resnet101": partial(pspnet_resnet, 101),
    "yolo": yolo,
}

DEFAULT_STUDENT = "resnet8"
