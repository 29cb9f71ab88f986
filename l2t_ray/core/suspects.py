"""Which labels look wrong, from what the student has said of each example while it trained.

The memory q of an example (`loss/memory.py`) is a running mean of the student's answers. A label is more suspicious,
the less of its example's memory is for it. Where the loss has a channel T of label noise, an example with the label y
is of class c with the probability q[c] T[c, y], up to a factor: the likeliest class is suggested.

The channel is left out of the score. By the probability that c is not y, wrong labels are ranked better on CIFAR-10
and worse on digits, there even with the true channel: it excuses a student that has learned the wrong label.
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
        scores: the share of the student's answers that are not for the label, between 0 and 1: higher is worse. It is
            not the probability that the label is wrong. NaN: the student never saw the example.
        knows_noise: whether a channel of label noise was at hand; else the suggestion is what the student mostly said.
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
    memory: Float[Tensor, "n c"], given: Int[Tensor, " n"], channel: Float[Tensor, "c c"] | None = None
) -> Suspects:
    """How suspicious the label of each example is. Ties are in the order of the examples.

    Args:
        memory: of each example; rows add up to 1 at most, those of examples that were never seen to 0.
        given: its label.
        channel: of the label noise, row the class, column the label that it is given; None: it is not known.
    """
    memory, given = memory.double().cpu(), given.cpu()
    total = memory.sum(dim=1)
    is_seen, of_label = total > 0, _at(memory, given)
    scores = torch.where(is_seen, (1 - of_label / total).clamp(0, 1), torch.nan)
    classes = memory if channel is None else memory * channel.double().cpu().t()[given]
    suggested = torch.where(classes.amax(dim=1) > _at(classes, given), classes.argmax(dim=1), given)
    order = scores.nan_to_num(-1.0).argsort(descending=True, stable=True)
    return Suspects(order, given[order], suggested[order], scores[order], channel is not None)


def _at(values: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return values.gather(1, labels[:, None])[:, 0]
