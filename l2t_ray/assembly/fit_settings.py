"""From the arguments of `fit` to the settings that a configuration with them would have."""

from collections.abc import Mapping
from typing import Any

from l2t_ray.core.loss.brought import checked_family
from l2t_ray.core.loss.family import LossFamily
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.interfaces import UserError
from l2t_ray.methods.learned_loss import LearnedLossSettings
from l2t_ray.methods.loss_network import LossNetworkConfig
from l2t_ray.methods.loss_settings import LossSettings
from l2t_ray.methods.parts import LossFacts
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.settings import experiment as configuration
from l2t_ray.settings.experiment import ExperimentConfig
from l2t_ray.settings.tree import Settings
from l2t_ray.training.user_module import copied

GivenLoss = LossFamily | DynamicLossNetwork | Mapping[str, Any] | str | None
"""A loss as it begins, or its settings; None: as the method has it."""


def steps_by(optimizer: Mapping[str, Any] | str, learning_rate: float | None) -> dict[str, Any]:
    """What the section `training` says of the optimizer's steps."""
    given = {"name": optimizer} if isinstance(optimizer, str) else dict(optimizer)
    name = given.pop("name")
    usual = 0.1 if name == "sgd" else 1e-3
    return given | {"optimizer": name, "learning_rate": usual if learning_rate is None else learning_rate}


def settings_of(
    training: dict[str, Any],
    method: MethodSettings | Mapping[str, Any] | str | None,
    *,
    seed: int,
    warm_share: float | None,
    teacher: str | Mapping[str, Any] | None,
    loss: GivenLoss,
    source: str = "the arguments of fit",
) -> ExperimentConfig:
    """What a configuration with these settings would be.

    Args:
        source: where they come from, for messages.

    Raises:
        UserError: if there is no such method, or it has no such settings.
    """
    tree = {"seed": seed, "training": training | {"decay": "cosine"}, "controls": [], "ray": {"enabled": False}}
    if method is not None:
        tree["method"] = dict(method) if isinstance(method, Mapping) else method
    config = configuration.validate(tree, source=source)
    method, own = config.method, dict[str, Any]()
    for name, value in (("warm_share", warm_share), ("teacher", teacher), ("loss", loss)):
        if value is not None and name not in type(method).model_fields:
            raise UserError(f"{name} is for a method that learns its loss, and method is {method.name!r}.")
    if warm_share == 1:  # never learned
        return configuration.validate(tree | {"method": "cross_entropy"}, source=source)
    if warm_share is not None:
        own["warm_share"] = float(warm_share)
    if teacher is not None:
        own["teacher"] = teacher
    if isinstance(loss, str | Mapping):
        own["loss"] = loss
    elif isinstance(loss, DynamicLossNetwork) and isinstance(method, LearnedLossSettings):
        # Where it begins is its own weights' to say.
        set_already = method.loss.model_dump() if isinstance(method.loss, LossNetworkConfig) else {}
        own["loss"] = set_already | LossNetworkConfig.of(loss.spec) | {"init": "cross_entropy"}
    if own:
        changed = configuration.validated(type(method), Settings(method.model_dump() | own, f"in {source}"))
        config = config.model_copy(update={"method": changed})
    if loss is None or isinstance(loss, str | Mapping | DynamicLossNetwork):
        return config
    brought = config.method.model_copy(update={"loss": LossSettings(name=type(loss).__name__)})
    return config.model_copy(update={"method": brought})


def first_loss(
    given: GivenLoss,
    config: ExperimentConfig,
    facts: LossFacts,
    num_labels: int,
) -> LossFamily | None:
    """The loss to begin with; one that is given is copied. None: the method learns none.

    Raises:
        UserError: if it is for another number of classes.
    """
    if isinstance(given, DynamicLossNetwork) and given.spec.num_classes not in (None, facts.num_classes):
        raise UserError(
            f"loss is for {given.spec.num_classes} classes, and the labels have {num_labels}, model "
            f"{facts.num_classes} outputs; make one for {facts.num_classes}, or leave it out."
        )
    method = config.method
    if not isinstance(method, LearnedLossSettings):
        return None
    if given is None or isinstance(given, str | Mapping):
        return method.first_loss(facts)
    if isinstance(given, DynamicLossNetwork):
        return PairLoss(copied(given, "loss").float(), facts.task)  # teachers move phi in single precision
    return checked_family(given, "loss", facts.task)
