"""The values of a whole global batch on every worker, from sums alone."""

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.interfaces import Group


def gathered(values: Float[Tensor, " n"], group: Group) -> tuple[Float[Tensor, " whole"], int]:
    """All workers' values in order of rank, and where this worker's begin among them."""
    if group.size == 1:
        return values, 0
    sizes = torch.zeros(group.size, device=values.device)
    sizes[group.rank] = len(values)
    counts = [int(size) for size in group.sum(sizes).tolist()]
    start = sum(counts[: group.rank])
    whole = values.new_zeros(sum(counts))
    whole[start : start + len(values)] = values
    return group.sum(whole), start
