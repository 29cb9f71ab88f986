"""The values of a whole global batch on every worker, from sums alone."""

import torch
from jaxtyping import Shaped
from torch import Tensor

from l2t_ray.interfaces import Group


def gathered(values: Shaped[Tensor, "n *rest"], group: Group) -> tuple[Shaped[Tensor, "whole *rest"], int]:
    """All workers' values in order of rank, and where this worker's begin among them."""
    if group.size == 1:
        return values, 0
    sizes = torch.zeros(group.size, dtype=torch.int64, device=values.device)
    sizes[group.rank] = len(values)
    counts: list[int] = group.sum(sizes).tolist()
    start = sum(counts[: group.rank])
    whole = values.new_zeros(sum(counts), *values.shape[1:])
    whole[start : start + len(values)] = values
    return group.sum(whole), start
