"""A channel of label noise: a part that composes with a loss of class probabilities.

Row the class, column the label that it is given. A loss then reads p T, what the student's p says of the label that a
noisy annotator would give, so that the p that fits best is that of the true classes (forward correction: Patrini et
al., CVPR 2017).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.core.loss.family import Bars, LossPicture
from l2t_ray.core.loss.pairs import TABLE_SCALE
from l2t_ray.core.loss.part import Part

FLOOR = 1e-3
"""What is added to probabilities before their logarithm: nothing is impossible, and all of it can be learned."""


@dataclass(frozen=True)
class Channel(Part):
    """A learned T `[C, C]`, rows adding up to 1. Its numbers are C^2 entries; where they are zero it is the identity,
    but for the floor."""

    num_classes: int

    @property
    def num_weights(self) -> int:
        return self.num_classes**2

    def log_matrix(self, entries: Float[Tensor, " m"]) -> Float[Tensor, "c c"]:
        """log T."""
        square = entries.view(self.num_classes, self.num_classes)
        return (_log_floored(torch.eye(self.num_classes).to(entries)) + TABLE_SCALE * square).log_softmax(dim=1)

    def seen(self, entries: Float[Tensor, " m"], p: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """p T: probabilities of the labels that are given."""
        return p @ self.log_matrix(entries).exp()

    def log_seen(
        self, entries: Float[Tensor, " m"], log_p: Float[Tensor, "n c"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """log (p T)_y of each row; finite where p vanishes."""
        return (log_p + self.log_matrix(entries).t()[labels]).logsumexp(dim=1)

    def log_seen_each(self, entries: Float[Tensor, " m"], log_p: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """log (p T)_j of each label j; finite, since no entry of T is zero."""
        return self.seen(entries, log_p.exp()).log()

    def describe(self, numbers: Float[Tensor, " m"]) -> str:
        wrong = 1 - self.log_matrix(numbers).exp().diagonal().mean().item()
        return (
            f"Between a class and its label stands a channel of label noise, in which {wrong:.1%} of labels change.\n"
        )

    def pictures(self, numbers: Float[Tensor, " m"]) -> list[LossPicture]:
        changed = (1 - self.log_matrix(numbers).exp().diagonal()).tolist()
        return [
            Bars(
                "labels that change, by class",
                {str(c): share for c, share in enumerate(changed)},
                0.0,
                are_classes=True,
            )
        ]

    def entries_of(self, matrix: Float[Tensor, "c c"]) -> Float[Tensor, " m"]:
        """The entries at which the channel is `matrix`, but for the floor."""
        identity = torch.eye(len(matrix)).to(matrix)
        return ((_log_floored(matrix) - _log_floored(identity)) / TABLE_SCALE).flatten()


class NoChannel(Part):
    """Labels are read as they are."""

    def seen(self, entries: Float[Tensor, " m"], p: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        del entries  # it has none
        return p

    def log_seen(
        self, entries: Float[Tensor, " m"], log_p: Float[Tensor, "n c"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        del entries
        return log_p.gather(1, labels[:, None])[:, 0]

    def log_seen_each(self, entries: Float[Tensor, " m"], log_p: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        del entries
        return log_p


def _log_floored(matrix: Tensor) -> Tensor:
    return (matrix + FLOOR).log()
