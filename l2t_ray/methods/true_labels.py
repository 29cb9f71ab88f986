"""The reference line of a table: what the student would come to if no training label were wrong.

Nobody has those labels outside of an experiment. What a method gains on cross-entropy is read against what there was to
gain (`reports.comparison_table`).
"""

from typing import ClassVar, Literal

from l2t_ray.core.student import RowLoss, cross_entropy
from l2t_ray.methods.parts import Parts
from l2t_ray.methods.phases import Phase
from l2t_ray.methods.schedules import SHU_2019, PaperSchedule
from l2t_ray.methods.settings import MethodSettings


class TrueLabelsConfig(MethodSettings):
    """Cross-entropy on the training labels as they were before noise: no method, but the end of the scale."""

    paper_schedule: ClassVar[PaperSchedule | None] = SHU_2019
    goes_by_images: ClassVar[bool] = True

    name: Literal["true_labels"] = "true_labels"
    clean_images: Literal["validate"] = "validate"  # pyright: ignore[reportIncompatibleVariableOverride]
    """They are validated on: the labels that are trained on are as clean."""

    def fixed_loss(self, parts: Parts) -> RowLoss:
        del parts
        return cross_entropy

    def phases(self, parts: Parts) -> list[Phase]:
        """
        Raises:
            UserError: if nobody knows the labels without noise.
        """
        return [Phase(0, self.build(parts), parts.source.truly_labelled())]
