"""Batch normalisation with the statistics of the global minibatch, whatever the number of workers.

PyTorch's own synchronised version cannot be differentiated twice. This one is plain sums: each is a `GlobalSum`, whose
derivative is again one, so hypergradients pass through it exactly (engines `store` and `recompute`).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from l2t_ray.interfaces import Group
from l2t_ray.parallel.group import GlobalSum


class GlobalBatchNorm2d(nn.Module):
    """As `nn.BatchNorm2d` (affine, with running statistics) on the union of all workers' slices.

    Args:
        template: its weights, buffers, momentum and epsilon are taken over, under the same names.
        group: the workers; every one of them must call this layer at the same point.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, template: nn.BatchNorm2d, group: Group):
        super().__init__()
        assert template.momentum is not None
        self.weight, self.bias = template.weight, template.bias
        self.momentum, self.eps, self._group = template.momentum, template.eps, group
        for name, buffer in template.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        mean, var = self._batch_statistics(x) if self.training else (self.running_mean, self.running_var)
        scale = self.weight / (var + self.eps).sqrt()
        return x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]

    def _batch_statistics(self, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # in half precision counts above 256 would be rounded
        size = x.new_tensor([float(x.shape[0] * x.shape[2] * x.shape[3])])
        sums = GlobalSum.apply(torch.cat((x.sum(dim=(0, 2, 3)), size)), self._group)
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        squares = (x - mean[:, None, None]).square().sum(dim=(0, 2, 3))
        var = GlobalSum.apply(squares, self._group) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(var.detach() * count / (count - 1), self.momentum)  # unbiased, as PyTorch keeps it
            self.num_batches_tracked.add_(1)
        return mean, var


def with_global_batch_norm(module: nn.Module, group: Group) -> nn.Module:
    """The module with each of its batch-norm layers replaced (in place) by a global one."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, GlobalBatchNorm2d(child, group))
        else:
            with_global_batch_norm(child, group)
    return module
