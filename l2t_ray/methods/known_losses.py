"""The families of learned losses that a configuration knows by name: one line each."""

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field, SerializeAsAny, WrapValidator

from l2t_ray.methods.loss_network import LossNetworkConfig
from l2t_ray.methods.loss_settings import LossSettings
from l2t_ray.methods.loss_terms import TermLossConfig
from l2t_ray.settings.record import named, own_record

LOSSES: tuple[type[LossSettings], ...] = (LossNetworkConfig, TermLossConfig)

DEFAULT_LOSS = LossNetworkConfig


def _one_of_ones_own(value: Any, by_name: Any) -> Any:
    if isinstance(value, LossSettings) and type(value) not in LOSSES:
        return value
    own = own_record(value, LossSettings)
    return by_name(value) if own is None else own.model_validate(value)


if TYPE_CHECKING:
    LossConfig = LossSettings
else:
    LossConfig = Annotated[
        Union[LOSSES],  # noqa: UP007 (a value, not an annotation)
        Field(discriminator="name"),
        WrapValidator(_one_of_ones_own),
        SerializeAsAny(),
        named(DEFAULT_LOSS.model_fields["name"].default),
    ]
