"""Adam on one flat vector, with its whole state in tensors: what a method's `extra` can hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Learned(NamedTuple):
    """Weights that a method learns beside the student's, and how far their optimiser is."""

    weights: Float[Tensor, " m"]
    first_moment: Float[Tensor, " m"]
    second_moment: Float[Tensor, " m"]
    num_updates: Int[Tensor, ""]

    @classmethod
    def begin(cls, weights: Float[Tensor, " m"]) -> "Learned":
        zero = torch.zeros_like(weights)
        return cls(weights, zero, zero, torch.zeros((), dtype=torch.int64, device=weights.device))

    @classmethod
    def out_of(cls, extra: Mapping[str, Tensor]) -> "Learned":
        """From a mapping that has these fields among others."""
        return cls(**{name: extra[name] for name in cls._fields})


@dataclass(frozen=True)
class Adam:
    """As `torch.optim.Adam` (Kingma & Ba 2015), weight decay added to the gradient; changes nothing in place."""

    rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def step(self, learned: Learned, gradient: Float[Tensor, " m"]) -> Learned:
        first_beta, second_beta = self.betas
        gradient = gradient + self.weight_decay * learned.weights
        first = first_beta * learned.first_moment + (1 - first_beta) * gradient
        second = second_beta * learned.second_moment + (1 - second_beta) * gradient.square()
        num_updates = learned.num_updates + 1
        # In double precision: 1 - 0.999 is not 1e-3 in single.
        first_bias = 1 - first_beta ** num_updates.double()
        second_bias = 1 - second_beta ** num_updates.double()
        step = (first / first_bias) / ((second / second_bias).sqrt() + self.epsilon)
        return Learned(learned.weights - self.rate * step, first, second, num_updates)
