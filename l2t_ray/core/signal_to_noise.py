"""How much of a round's hypergradient is signal: its running mean against its running deviation.

Rounds draw other images, so that hypergradients scatter around what they are on average. Both moments are running ones
(`DECAY`), and the ratio is that of one round's hypergradient, not of their mean: were rounds independent, with mean mu
and variance sigma^2 in each coordinate, then for weights w_k of the rounds that add up to 1

    E[m^2 - W q] = (1 - W) |mu|^2,   E[q - m^2] = (1 - W) |sigma|^2,   W = sum_k w_k^2,

with m the running mean and q the running mean of squares. The square root of the quotient of the two is the ratio, 0
where the mean is no longer than chance makes it. It is of hypergradients as a teacher learns from them, shortened to
its `clip`: their norms have heavy tails.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.core.loss.family import LossFamily
from l2t_ray.interfaces import Metrics

DECAY = 0.98
"""What the moments keep in a round: they are of the last hundred rounds, or so."""
LEAST_ROUNDS = 10
"""Before, too few rounds have been seen to say anything."""
WHOLE = "snr"


@runtime_checkable
class Grouped(Protocol):
    """A family that says what the stretches of its phi are."""

    @property
    def groups(self) -> Mapping[str, int]:
        """Lengths by name, in the order of phi."""
        ...


class Moments(NamedTuple):
    """Running sums over rounds, each weighed by `DECAY` to the power of its age; nothing is changed in place."""

    mean: Float[Tensor, " m"]
    square: Float[Tensor, " m"]
    rounds: int

    @classmethod
    def begin(cls, phi: Float[Tensor, " m"]) -> "Moments":
        return cls(torch.zeros_like(phi), torch.zeros_like(phi), 0)

    def after(self, gradient: Float[Tensor, " m"]) -> "Moments":
        gradient = gradient.to(self.mean)
        return Moments(
            DECAY * self.mean + (1 - DECAY) * gradient,
            DECAY * self.square + (1 - DECAY) * gradient.square(),
            self.rounds + 1,
        )


@dataclass(frozen=True)
class SignalToNoise:
    """What a teacher says of the hypergradients that it is given.

    Attributes:
        groups: lengths of stretches of phi by name; empty: it is taken as a whole.
        clip: largest norm of a hypergradient; longer ones are shortened to it. None: no limit.
    """

    groups: Mapping[str, int] = field(default_factory=dict)
    clip: float | None = None

    @classmethod
    def of(cls, loss: LossFamily, clip: float | None) -> "SignalToNoise":
        return cls(dict(loss.groups) if isinstance(loss, Grouped) else {}, clip)

    def observed(self, moments: Moments) -> Metrics:
        """`snr`, and `snr_<group>` where there are several; nothing in the first `LEAST_ROUNDS` rounds."""
        if moments.rounds < LEAST_ROUNDS:
            return {}
        kept = DECAY**moments.rounds
        mean, square = moments.mean / (1 - kept), moments.square / (1 - kept)
        concentration = (1 - DECAY) / (1 + DECAY) * (1 + kept) / (1 - kept)
        signal, noise = mean.square() - concentration * square, square - mean.square()
        metrics = {WHOLE: _ratio(signal, noise)}
        if len(self.groups) > 1:
            sizes = list(self.groups.values())
            pieces = zip(self.groups, signal.split(sizes), noise.split(sizes), strict=True)
            metrics |= {f"{WHOLE}_{name}": _ratio(*own) for name, *own in pieces}
        return metrics


def cosine(gradient: Float[Tensor, " m"], other: Float[Tensor, " m"]) -> float:
    """Of the angle between two hypergradients; 0 where one of them vanishes."""
    norms = torch.linalg.vector_norm(gradient) * torch.linalg.vector_norm(other)
    return (gradient @ other / norms).item() if norms > 0 else 0.0


def _ratio(signal: Tensor, noise: Tensor) -> float:
    """0 where there is neither."""
    total = noise.sum().item()
    return (max(0.0, signal.sum().item()) / total) ** 0.5 if total > 0 else 0.0
