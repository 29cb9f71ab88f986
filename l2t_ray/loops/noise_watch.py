"""The label noise, estimated from what the loop itself has shown: the model's latest answers, and their labels."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.core.noise_estimate import NoiseEstimate, estimate_noise

MOST = 5_000
"""Answers that are kept, the latest ones."""
NUM_ESTIMATES = 4


class NoiseWatch:
    """Keeps what is estimated from, and says when: after the warm steps, and when twice, four and eight times as many
    have been taken, with a better model each time.

    Args:
        warm_steps: 0: nothing is estimated.
    """

    def __init__(self, warm_steps: int):
        self._steps = [warm_steps * 2**i for i in range(NUM_ESTIMATES)] if warm_steps else []
        self._seen: list[tuple[Tensor, Tensor]] = []

    def see(self, logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> None:
        self._seen.append((logits.detach().float(), labels.detach()))
        while len(self._seen) > 1 and sum(len(old) for _, old in self._seen[1:]) >= MOST:
            del self._seen[0]

    def is_due(self, step: int) -> bool:
        """Whether there is to be an estimate after so many steps."""
        return step in self._steps

    def is_over(self, step: int) -> bool:
        """Whether no more answers are needed."""
        return not self._steps or step >= self._steps[-1]

    def estimate(self, clean: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> NoiseEstimate:
        """From the model's answers of clean examples, and those that were seen, which are then forgotten."""
        noisy, given = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        features = (logits.double().log_softmax(dim=1) for logits in (clean, noisy))
        clean, noisy = features
        return estimate_noise(clean, labels.to(clean.device), noisy, given, num_classes=clean.shape[1])

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self._seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen = [(logits, labels) for logits, labels in state["seen"]]
