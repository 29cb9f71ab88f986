"""From a method's settings to its teacher."""

from collections.abc import Callable

import torch

from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.teacher import AdamRule, LocalTeacher
from l2t_ray.interfaces import Teacher
from l2t_ray.methods.settings import MethodSettings

MakeTeacher = Callable[[MethodSettings, int], Teacher]
"""`(method, number of classes) -> its teacher`: local, or a line to the teacher actor."""


def build_teacher(
    method: MethodSettings, num_classes: int, *, seed: int, network: DynamicLossNetwork | None = None
) -> LocalTeacher:
    """A teacher at its beginning, with the loss's first weights.

    Args:
        network: has these weights; None: the method says which they are.
    """
    return method.new_teacher(num_classes, seed=seed, network=network)


def idle_teacher(method: MethodSettings, num_classes: int) -> LocalTeacher:
    """Stands in for a teacher that is not asked: a loss network's first weights are fitted for seconds."""
    del method, num_classes
    return LocalTeacher(torch.zeros(1), AdamRule(1))
