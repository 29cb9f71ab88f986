"""The settings of an adjusted cross-entropy (`core/loss/adjusted.py`)."""

from collections.abc import Callable
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor

from l2t_ray.core.loss.adjusted import AdjustedLoss, AdjustedSpec
from l2t_ray.core.loss.family import LossFamily
from l2t_ray.methods.balanced_softmax import log_shares
from l2t_ray.methods.loss_settings import LossSettings
from l2t_ray.methods.parts import LossFacts
from l2t_ray.settings.record import Positive


class AdjustedLossConfig(LossSettings):
    """Few numbers that change cross-entropy on class decisions; each may be left out, and the push stays fixed."""

    channel_setting: ClassVar[tuple[str, str]] = ("channel=true", "channel=false")

    name: Literal["adjusted"] = "adjusted"  # pyright: ignore[reportIncompatibleVariableOverride]
    shifts: bool = True
    """A number for each class that is added to its logit in training."""
    start: Literal["even", "counted"] = "even"
    """Where the shifts start. `even`: at zero; `counted`: at the logarithms of the classes' shares among the training
    labels, which is balanced softmax."""
    smoothing: bool = False
    """How much the labels are smoothed, from 0 to 0.5."""
    power: bool = False
    """The power of generalised cross-entropy, from 0 to 1."""
    temperature: bool = False
    """What the logits are divided by, from 0.25 to 4."""
    channel: bool = False
    """A matrix of label noise, which probabilities go through before they are compared with the labels."""
    memory: Positive | None = None
    """Where the weight of the memory term starts (`core/loss/memory.py`); null: there is none."""

    @model_validator(mode="after")
    def _makes_sense(self) -> "AdjustedLossConfig":
        if self.start == "counted" and not self.shifts:
            raise ValueError("loss.start is 'counted', which is of shifts, and loss.shifts is false; set one of them")
        is_something = self.shifts or self.smoothing or self.power or self.temperature or self.channel
        if not is_something and self.memory is None:
            raise ValueError(
                "loss has nothing to learn: set one of loss.shifts, smoothing, power, temperature and channel to true, "
                "or a memory"
            )
        return self

    @property
    def has_channel(self) -> bool:
        return self.channel

    def family(self, facts: LossFacts, *, begun: bool = True) -> AdjustedLoss:
        """
        Raises:
            UserError: if shares are to be counted and there is nothing to count.
        """
        del begun  # what it begins with is no more than a few numbers
        counts = facts.class_counts() if self.start == "counted" else None
        start = (0.0,) * facts.num_classes if counts is None else tuple(log_shares(counts).tolist())
        return AdjustedLoss(self._spec(facts.num_classes, start), facts.task)

    def bound(self, family: LossFamily) -> Callable[[Float[Tensor, " m"]], Float[Tensor, " m"]] | None:
        return family.within_bounds if isinstance(family, AdjustedLoss) else None

    def noise(self, phi: Float[Tensor, " m"], num_classes: int) -> Float[Tensor, "c c"] | None:
        # Where the shifts start is no matter of the channel's.
        return AdjustedLoss(self._spec(num_classes, (0.0,) * num_classes)).noise(phi)

    def _spec(self, num_classes: int, start: tuple[float, ...]) -> AdjustedSpec:
        return AdjustedSpec(
            start if self.shifts else (),
            smoothing=self.smoothing,
            power=self.power,
            temperature=self.temperature,
            channel=num_classes if self.channel else None,
            memory=self.memory,
        )
