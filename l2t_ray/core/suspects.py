"""Which labels look wrong, from what the student has said of each example while it trained.

The memory of an example (`loss/memory.py`) is a running mean of the student's answers. A label is the more suspicious,
the less of its example's memory is for it. Weighing the classes by the channel of label noise as well, to the
probability that the label is wrong, ranks worse, even with the true channel: it excuses the student where it has
learned a wrong label, and such errors are not the channel's.
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
        suggested: what the student mostly said; the label itself where nothing was said oftener, or nothing at all.
        scores: the share of the student's answers that are not for the label, between 0 and 1: higher is worse. It is
            not the probability that the label is wrong. NaN: the student never saw the example.
        knows_noise: whether the label noise was estimated in the training, and the student trained under the estimate.
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
def suspects(memory: Float[Tensor, "n c"], given: Int[Tensor, " n"], *, knows_noise: bool) -> Suspects:
    """How suspicious the label of each example is. Ties are in the order of the examples.

    Args:
        memory: of each example; rows add up to 1 at most, those of examples that were never seen to 0.
        given: its label.
        knows_noise: as in `Suspects`.
    """
    memory, given = memory.double().cpu(), given.cpu()
    total = memory.sum(dim=1)
    is_seen, of_label = total > 0, memory.gather(1, given[:, None])[:, 0]
    scores = torch.where(is_seen, (1 - of_label / total).clamp(0, 1), torch.nan)
    suggested = torch.where(memory.amax(dim=1) > of_label, memory.argmax(dim=1), given)
    order = scores.nan_to_num(-1.0).argsort(descending=True, stable=True)
    return Suspects(order, given[order], suggested[order], scores[order], knows_noise)
