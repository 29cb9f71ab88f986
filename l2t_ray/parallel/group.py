"""Sums over the workers that share one student."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from l2t_ray.timing import part

FindSilent = Callable[[int, int], list[int]]
"""`(rank, number of workers) -> ranks` that give no sign of life, as the worker of that rank has just found."""


class SingleProcess:
    """A group of one: sums are what they were."""

    rank = 0
    size = 1

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor


class ProcessGroup:
    """The default `torch.distributed` group (nccl on GPUs, gloo on CPUs), which must be initialised already.

    Args:
        timeout_s: the longest wait that the group was initialised with, for the message when it is over.
        find_silent: asked when a sum fails, so that the message can name the worker that hangs.
    """

    def __init__(self, *, timeout_s: float | None = None, find_silent: FindSilent = lambda rank, size: []) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._timeout_s, self._find_silent = timeout_s, find_silent

    @part("collectives")
    def sum(self, tensor: Tensor) -> Tensor:
        """The element-wise sum over all workers.

        Raises:
            TimeoutError: if another worker does not come.
        """
        tensor = tensor.contiguous()
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            # A worker that gives up closes its connections: for the others the sum then fails in another way.
            silent = self._find_silent(self.rank, self.size)
            if not silent and "imed out" not in str(error):
                raise
            waited = "long enough" if self._timeout_s is None else f"ray.timeout_s={self._timeout_s:g} s"
            names = f"worker {', '.join(map(str, silent))}" if silent else "another worker"
            raise TimeoutError(f"waited {waited} for the sum over workers: {names} hangs") from error
        return tensor


class GlobalSum(torch.autograd.Function):
    """A sum over workers that can be differentiated any number of times.

    Every worker adds its share to one global loss, so the derivative of that loss in a worker's summand is the sum
    over workers of the derivatives in the result: the backward pass is the same sum.
    """

    @staticmethod
    def forward(ctx, tensor: Tensor, group) -> Tensor:
        ctx.group = group
        return group.sum(tensor.clone())

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        return GlobalSum.apply(gradients[0], ctx.group), None
