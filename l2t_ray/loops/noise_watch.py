"""The label noise, estimated from what the loop itself has shown: the model's latest answers, and their labels."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.core.noise_estimate import NoiseEstimate, estimate_noise
from l2t_ray.core.readout import told

MOST = 5_000
"""Answers that are estimated from, the latest ones."""
RECENT = 0.75
"""Answers count from this share of an estimate's step on: older ones are of another model."""
NUM_ESTIMATES = 4
LEAST_TOLD = 0.4
"""Of what there is to tell about the clean labels. From answers that tell less, an estimate may be far off
and sure of itself."""

LEAST_SEEN = 10
"""Answers for each class."""


class NoiseWatch:
    """Keeps what is estimated from, and knows when.

    The first estimate is due after the warm steps, and put off by a quarter as long as the model knows too little; each
    later one is due when twice as many steps have been taken, with a better model.

    Args:
        warm_steps: above 0.

    Attributes:
        num_estimates: that there have been.
    """

    def __init__(self, warm_steps: int):
        self._due, self.num_estimates = warm_steps, 0
        self._seen: list[tuple[Tensor, Tensor]] = []

    @property
    def is_over(self) -> bool:
        return self.num_estimates == NUM_ESTIMATES

    def see(self, step: int, logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> None:
        """Hears of a minibatch of this step, the model's answers and the labels given."""
        if self.is_over or step < RECENT * self._due:
            return
        self._seen.append((logits.detach().float(), labels.detach()))
        while sum(len(labels) for _, labels in self._seen[1:]) >= MOST:
            del self._seen[0]

    def is_due(self, step: int) -> bool:
        """Whether there is to be an estimate after so many steps."""
        return not self.is_over and step >= self._due and bool(self._seen)

    def estimate(self, step: int, clean: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> NoiseEstimate | None:
        """From the model's answers to clean examples, and those that were seen; None: they tell too little."""
        noisy, given = (torch.cat(parts).to(clean.device) for parts in zip(*self._seen, strict=True))
        self._seen = []
        clean, noisy = (logits.double().log_softmax(dim=1) for logits in (clean, noisy))
        num_classes = clean.shape[1]
        is_little = len(given) < LEAST_SEEN * num_classes
        if is_little or told(clean, labels, num_classes=num_classes) < LEAST_TOLD:
            self._due = -(-5 * step // 4)
            return None
        self._due, self.num_estimates = 2 * step, self.num_estimates + 1
        return estimate_noise(clean, labels, noisy, given, num_classes=num_classes)

    def state_dict(self) -> dict[str, Any]:
        return {"due": self._due, "num_estimates": self.num_estimates, "seen": list(self._seen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._due, self.num_estimates = state["due"], state["num_estimates"]
        self._seen = [(logits, labels) for logits, labels in state["seen"]]
