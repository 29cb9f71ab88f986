"""From a method's settings to its teacher."""

from collections.abc import Callable

import torch

from l2t_ray.core.teacher import AdamRule, LocalTeacher
from l2t_ray.interfaces import Teacher
from l2t_ray.methods.parts import LossFacts
from l2t_ray.methods.settings import MethodSettings

MakeTeacher = Callable[[MethodSettings, LossFacts], Teacher]
"""`(method, what its loss is made for) -> its teacher`: local, or a line to the teacher actor."""


def build_teacher(method: MethodSettings, facts: LossFacts) -> LocalTeacher:
    """A teacher at its beginning, with the loss's first weights."""
    return method.new_teacher(facts)


def idle_teacher(method: MethodSettings, facts: LossFacts) -> LocalTeacher:
    """Stands in for a teacher that is not asked: a loss network's first weights are fitted for seconds."""
    del method, facts
    return LocalTeacher(torch.zeros(1), AdamRule(1))
