"""What every family of learned losses is in a configuration: settings, and how a loss is made from them.

A family is one file: a class with the loss (`core/loss/family.LossFamily`), and a subclass of `LossSettings` that makes
one. One line in `known_losses.LOSSES` adds it to the configuration; one's own is named by its import path instead.
"""

from collections.abc import Callable
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from l2t_ray.core.loss.family import LossFamily
from l2t_ray.core.loss.memory import Memory
from l2t_ray.core.student import Trainee, cross_entropy
from l2t_ray.interfaces import Method, UserError
from l2t_ray.methods.fixed_loss import FixedLoss
from l2t_ray.methods.parts import LossFacts
from l2t_ray.settings.record import PathNamed


class LossSettings(PathNamed):
    """A family of learned losses: its name and its settings."""

    channel_setting: ClassVar[tuple[str, str]] = ("label_entries=channel", "label_entries=table")
    """What gives it a channel of label noise, and what takes it away."""

    name: str

    @property
    def has_channel(self) -> bool:
        """Whether the label noise is estimated for it (`learned_loss.ShiftedByNoise`)."""
        return False

    def family(self, facts: LossFacts, *, begun: bool = True) -> LossFamily:
        """The loss.

        Args:
            begun: with the weights that it begins with; False: they are somebody else's to say, and may be any.

        Raises:
            UserError: if it is no loss for these facts, or the class makes none.
        """
        del facts, begun
        raise UserError(f"loss {self.name!r} says not what it is; define family in its class.")

    def noise(self, phi: Float[Tensor, " m"], num_classes: int) -> Float[Tensor, "c c"] | None:
        """The channel of label noise of a loss with these weights; None: it has none."""
        del phi, num_classes
        return None

    def warm_up(self, trainee: Trainee, memory: Memory | None = None) -> Method:
        """The fixed loss that it stands in for: of warm rounds, and of rounds on clean images alone.

        Args:
            memory: kept up to date for the rounds behind; None: they read none.
        """
        return FixedLoss(trainee, cross_entropy, memory=memory)

    def bound(self, family: LossFamily) -> Callable[[Float[Tensor, " m"]], Float[Tensor, " m"]] | None:
        """What phi is held to after each move; None: nothing."""
        del family
        return None
