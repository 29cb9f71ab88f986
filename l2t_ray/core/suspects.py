"""Which labels look wrong, from what the student has said of each example while it trained.

The memory q of an example (`loss/memory.py`) is a running mean of the student's answers, scaled here so that it adds up
to 1: what the student takes for the example's true class. Where the loss has a channel T of label noise, an example
with the label y is of class c with the probability q[c] T[c, y], up to a factor, and its label is wrong with the
probability that c is not y. Without a channel nothing is known of the noise: what remains is how little of the memory
is for the label.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SMALLEST = 1e-6
"""What is added to a memory: a class that was never named is not impossible."""


class Suspects(NamedTuple):
    """Examples with their labels, the most suspicious first; those that have never been seen stand last.

    Attributes:
        places: of the examples, in the order in which they were asked about.
        given: their labels.
        suggested: the likeliest classes; the label itself where that is the likeliest, or nothing is known.
        scores: how suspicious each label is, between 0 and 1, higher is worse. NaN: the student never saw the example.
            Where `knows_noise`, the probability that the label is wrong; else the share of the student's answers that
            are not for it.
        knows_noise: whether a channel of label noise was at hand.
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
        number, of = int(self.differs.sum()), f"of {len(self.given):,}"
        if self.knows_noise:
            return f"{number:,} {of} training labels look wrong"
        return f"{number:,} {of} training labels are not what the student says (the label noise was not estimated)"


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
    is_seen = memory.sum(dim=1) > 0
    classes = memory / memory.sum(dim=1, keepdim=True).clamp(min=torch.finfo(memory.dtype).tiny) + SMALLEST
    if channel is not None:
        classes = classes * channel.double().cpu().t()[given]
    classes = classes / classes.sum(dim=1, keepdim=True)
    of_label = classes.gather(1, given[:, None])[:, 0]
    scores = torch.where(is_seen, 1 - of_label, torch.nan)
    # The label stands where another class is no likelier.
    suggested = torch.where(is_seen & (classes.amax(dim=1) > of_label), classes.argmax(dim=1), given)
    order = torch.where(is_seen, scores, -1.0).argsort(descending=True, stable=True)
    return Suspects(order, given[order], suggested[order], scores[order], channel is not None)
