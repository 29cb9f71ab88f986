"""Which labels look wrong, from what the student has said of each example while it trained.

The tally of an example (`loss/memory.py`) is the student's mean answer q, up to a factor. Where the loss has a channel
T of label noise, an example with the label y is of class c with the probability q[c] T[c, y], up to a factor. A label
is the more suspicious, the more of that is for other classes, and the likeliest class is suggested. Without a channel
the answers alone are taken for these probabilities.

The share of the other classes is added up, and is not what the label's own leaves of 1: a student that has learned its
labels by heart still says less of other classes where the label is right, in digits that the rounding of numbers near
1 would lose.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Suspects(NamedTuple):
    """Examples with their labels, the most suspicious first; those that have never been seen stand last.

    Attributes:
        places: of the examples, in the order in which they were asked about.
        given: their labels.
        suggested: the likeliest class; the label itself where no other is likelier, or nothing is known.
        scores: the probability that the label is wrong, as far as the student knows: higher is worse. Where no channel
            of label noise was at hand, the share of the student's answers that are not for the label, which is no such
            probability. NaN: the student never saw the example.
        knows_noise: whether such a channel was at hand; else the suggestion is what the student mostly said.
    """

    places: Int[Tensor, " n"]
    given: Int[Tensor, " n"]
    suggested: Int[Tensor, " n"]
    scores: Float[Tensor, " n"]
    knows_noise: bool

    @property
    def differs(self) -> Bool[Tensor, " n"]:
        """Whether another class than the label is suggested."""
        return self.suggested != self.given

    def __str__(self) -> str:
        counts = f"{int(self.differs.sum()):,} of {len(self.given):,} training labels"
        if self.knows_noise:
            return f"{counts} look wrong to the student, which may be mistaken itself"
        return f"{counts} are not what the student mostly said; the label noise was not estimated"


@torch.no_grad()
def suspects(
    tally: Float[Tensor, "n c"], given: Int[Tensor, " n"], channel: Float[Tensor, "c c"] | None = None
) -> Suspects:
    """How suspicious the label of each example is. Ties are in the order of the examples.

    Args:
        tally: of each example, of any scale; zeros where it was never seen.
        given: its label.
        channel: of the label noise, row the class, column the label that it is given; None: it is not known.
    """
    tally, given = tally.double().cpu(), given.cpu()
    classes = tally if channel is None else tally * channel.double().cpu().t()[given]
    of_label = _at(classes, given)
    of_others = classes.scatter(1, given[:, None], 0.0)
    scores = torch.where(tally.sum(dim=1) > 0, of_others.sum(dim=1) / classes.sum(dim=1), torch.nan)
    suggested = torch.where(of_others.amax(dim=1) > of_label, of_others.argmax(dim=1), given)
    order = scores.nan_to_num(-1.0).argsort(descending=True, stable=True)
    return Suspects(order, given[order], suggested[order], scores[order], channel is not None)


def _at(values: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return values.gather(1, labels[:, None])[:, 0]
