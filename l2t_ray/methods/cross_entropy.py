"""Plain training: the control that every learned loss is held against."""

from typing import ClassVar, Literal

from l2t_ray.core.student import RowLoss, cross_entropy
from l2t_ray.methods.parts import Parts
from l2t_ray.methods.schedules import SHU_2019, PaperSchedule
from l2t_ray.methods.settings import MethodSettings


class CrossEntropyConfig(MethodSettings):
    """Plain training: the control that every learned loss is held against."""

    paper_schedule: ClassVar[PaperSchedule | None] = SHU_2019

    name: Literal["cross_entropy"] = "cross_entropy"

    def fixed_loss(self, parts: Parts) -> RowLoss:
        del parts
        return cross_entropy
