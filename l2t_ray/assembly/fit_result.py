"""What `fit` gives back."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.core.noise_estimate import NoiseEstimate
from l2t_ray.core.suspects import Suspects
from l2t_ray.interfaces import UserError

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Fit:
    """What `fit` gives back: the trained model in evaluation mode, the loss it was trained with at the end (None: the
    method learns none), and a row a round.

    `noise` is the newest estimate of the label noise, with its standard errors; None where there was none.
    `suspected` is what `suspects` makes a table of; None: the method cannot say.
    """

    model: nn.Module
    loss: LearnedLoss | None
    rows: list[dict[str, Any]]
    noise: NoiseEstimate | None
    suspected: Suspects | None = None

    def suspects(self) -> "pandas.DataFrame":
        """The training labels, the most suspicious first, by what the model said of each example while it trained.

        Returns:
            A row for each training example, with the columns `index` (its place in `train`), `given_label`,
            `suggested_label` (the likeliest class; the given one where no other is likelier) and `score`:
            the share of the model's answers that are not for the label, between 0 and 1. Higher is worse, other than
            in cleanlab, and it ranks labels: it is not the probability that one is wrong. NaN, at the end: an example
            that was never drawn.

        Raises:
            UserError: if the method remembers nothing of its examples.
        """
        found = self.suspected
        if found is None:
            raise UserError(
                "suspects() needs a method that remembers what the model said of each example, and this one does not; "
                'take method="recommended", or a loss network with memory.'
            )
        from pandas import DataFrame  # it takes a while to import, and nothing else here needs it

        return DataFrame(
            {
                "index": found.places.numpy(),
                "given_label": found.given.numpy(),
                "suggested_label": found.suggested.numpy(),
                "score": found.scores.numpy(),
            }
        )
