"""What a loss on class decisions is composed of."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from l2t_ray.core.loss.family import LossPicture
from l2t_ray.interfaces import Metrics


class Part:
    """A part, whose numbers are a stretch of phi. What it does with them is said by its kind; here is what a loss's
    page, table and figures ask of each. A part that has nothing to say says nothing."""

    @property
    def num_weights(self) -> int:
        return 0

    def report(self, numbers: Float[Tensor, " m"]) -> Metrics:
        """Numbers by column name, to be followed over the rounds."""
        del numbers
        return {}

    def describe(self, numbers: Float[Tensor, " m"]) -> str:
        """For the page, in Markdown."""
        del numbers
        return ""

    def pictures(self, numbers: Float[Tensor, " m"]) -> Sequence[LossPicture]:
        del numbers
        return []


def part_sizes(parts: Any) -> dict[str, int]:
    """How many numbers each of some parts has, a named tuple of them; those that have none are left out."""
    return {name: part.num_weights for name, part in parts._asdict().items() if part.num_weights}
