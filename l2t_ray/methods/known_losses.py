"""The families of learned losses that a configuration knows by name: one line each."""

from typing import TYPE_CHECKING, Annotated

from l2t_ray.methods.loss_adjusted import AdjustedLossConfig
from l2t_ray.methods.loss_network import LossNetworkConfig
from l2t_ray.methods.loss_settings import LossSettings
from l2t_ray.methods.loss_soft_metric import SoftMetricConfig
from l2t_ray.methods.loss_terms import TermLossConfig
from l2t_ray.settings.record import named, one_of

LOSSES: tuple[type[LossSettings], ...] = (LossNetworkConfig, TermLossConfig, SoftMetricConfig, AdjustedLossConfig)

DEFAULT_LOSS = LossNetworkConfig


if TYPE_CHECKING:
    LossConfig = LossSettings
else:
    LossConfig = Annotated[one_of(LOSSES, LossSettings), named(DEFAULT_LOSS.model_fields["name"].default)]
