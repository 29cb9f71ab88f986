"""The settings of a loss with curves inside a soft metric (`core/loss/soft_metric.py`)."""

from typing import Annotated, Literal

from pydantic import Field

from l2t_ray.core.loss.soft_metric import SoftMetricLoss, Sums
from l2t_ray.methods.loss_settings import LossSettings
from l2t_ray.methods.mask_loss import refuse_joined_heads, segmentation
from l2t_ray.methods.parts import LossFacts
from l2t_ray.settings.record import Real, Whole


class SoftMetricConfig(LossSettings):
    """Cross-entropy by class and a soft Jaccard index with learned curves inside, for images with masks."""

    name: Literal["soft_metric"] = "soft_metric"  # pyright: ignore[reportIncompatibleVariableOverride]
    pieces: Annotated[Whole, Field(ge=1, le=100)] = 4
    """Straight pieces of each of the two curves."""
    sums: Sums = "minibatch"
    """Over what a soft Jaccard index is taken: each worker's slice of the minibatch as a whole, or each `image`."""
    balance: Annotated[Real, Field(ge=0, le=1)] = 0.0
    """How far the weights of classes begin by how rare each is, as of `terms`."""

    def family(self, facts: LossFacts, *, begun: bool = True) -> SoftMetricLoss:
        """
        Raises:
            UserError: if the images have no masks, or the metric would be of two heads at once.
        """
        del begun  # where it begins costs nothing
        task = segmentation(facts.task, "loss soft_metric")
        refuse_joined_heads(task, "a soft metric")
        return SoftMetricLoss.for_classes(
            task.class_names, facts.sample(), num_pieces=self.pieces, sums=self.sums, balance=self.balance
        )
