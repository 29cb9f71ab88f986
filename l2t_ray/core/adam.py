"""Adam on one flat vector, with its whole state in tensors: what a checkpoint can hold.

The arithmetic is torch's own, as a function: making a `torch.optim.Adam` imports torch's compiler, which takes seconds
of every process's start.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.adam import adam


class Learned(NamedTuple):
    """Weights that are learned beside the student's, and how far their optimiser is."""

    weights: Float[Tensor, " m"]
    first_moment: Float[Tensor, " m"]
    second_moment: Float[Tensor, " m"]
    num_updates: Int[Tensor, ""]

    @classmethod
    def begin(cls, weights: Float[Tensor, " m"]) -> "Learned":
        zero = torch.zeros_like(weights)
        return cls(weights, zero, zero, torch.zeros((), dtype=torch.int64))

    @classmethod
    def out_of(cls, extra: Mapping[str, Tensor]) -> "Learned":
        """From a mapping that has these fields among others."""
        return cls(**{name: extra[name] for name in cls._fields})


@dataclass(frozen=True)
class AdamUpdate:
    """As `torch.optim.Adam` (Kingma & Ba 2015), weight decay added to the gradient; changes nothing in place."""

    rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def step(self, learned: Learned, gradient: Float[Tensor, " m"]) -> Learned:
        weights, first, second = (part.clone() for part in learned[:3])
        num_updates = learned.num_updates + 1
        adam(
            [weights],
            [gradient],
            [first],
            [second],
            [],
            [learned.num_updates.float().cpu()],
            foreach=False,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.rate,
            weight_decay=self.weight_decay,
            eps=self.epsilon,
            maximize=False,
        )
        return Learned(weights, first, second, num_updates)
