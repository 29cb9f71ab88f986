"""What is trained where nobody says what: the learned loss that has come out best so far, here and in one place.

docs/results.md has the figures, for clean and for noisy labels. Another choice is another line here.
"""

from typing import Annotated, Literal

from pydantic import Field

from l2t_ray.bilevel.engines import EngineName
from l2t_ray.interfaces import UserError
from l2t_ray.methods.l2t_dln import AdamConfig, L2TDLNConfig, LstmConfig
from l2t_ray.methods.loss_network import LossNetworkConfig
from l2t_ray.methods.parts import Parts
from l2t_ray.methods.phases import Phase
from l2t_ray.settings.record import Count, Fraction, Positive, Whole, named


class RecommendedLossConfig(LossNetworkConfig):
    """No layers: -log p of the label that a noisy annotator would give, and the memory."""

    layers: Annotated[Whole, Field(ge=0, le=100)] = 0
    """As in `l2t_dln`."""
    label_entries: Literal["constant", "table", "channel"] = "channel"
    """As in `l2t_dln`."""
    memory: Positive | None = 1.0
    """As in `l2t_dln`."""


class RecommendedConfig(L2TDLNConfig):
    """L2T-DLN with few numbers to learn: a channel of label noise, which is estimated from the student after plain
    warm-up rounds and again as it gets better, and how much the student's own memory of an image counts beside its
    label. The validation images take turns in being trained on and validated on."""

    name: Literal["recommended"] = "recommended"  # pyright: ignore[reportIncompatibleVariableOverride]
    engine: EngineName | Literal["auto"] = "one_step"
    """As in `l2t_dln`. The last step alone came out level with all fifteen, at half the cost (docs/log.md)."""
    loss: Annotated[RecommendedLossConfig, named("pairs")] = RecommendedLossConfig()  # pyright: ignore[reportIncompatibleVariableOverride]
    """Begins as the channel and the memory alone."""
    warm_share: Fraction = 0.15
    """As in `l2t_dln`."""
    channel_estimates: Count = 4
    """As in `l2t_dln`."""
    clean_images: Literal["validate", "mixed", "fine_tuned", "trusted"] = "trusted"
    """As in `l2t_dln`."""
    clean_folds: Annotated[Whole, Field(ge=2, le=1000)] | None = None
    """As in `l2t_dln`."""
    teacher: Annotated[LstmConfig | AdamConfig, Field(discriminator="name"), named("adam")] = AdamConfig()
    """As in `l2t_dln`; the LSTM comes out level."""

    def phases(self, parts: Parts) -> list[Phase]:
        """
        Raises:
            UserError: if images have more than one label each.
        """
        task = parts.trainee.task
        if not task.row_is_example:
            raise UserError(
                f"the recommended method is for images with one label each, and this is {task.name}; set "
                "method=l2t_dln, as configs/digit_scenes.yaml does."
            )
        return super().phases(parts)

    @property
    def arm(self) -> str:
        return self.label or (self.name if self.clean_images == "trusted" else f"{self.name}-{self.clean_images}")
