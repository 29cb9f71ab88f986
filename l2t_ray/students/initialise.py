"""Building a student whose first weights depend on one seed and nothing else."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def seeded(build: Callable[[], M], seed: int) -> M:
    """Runs `build` under `seed`, and leaves PyTorch's global generator as it was.

    `build` is to make its module on the CPU: the same seed then gives the same weights with and without a GPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        return build()
