"""Errors that are no sums: intersection over union, for one, of all workers' pixels together."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.interfaces import Group
from l2t_ray.parallel.gather import gathered


def share_of_gathered(
    function: Callable[[Float[Tensor, "whole k"]], Float[Tensor, ""]], rows: Float[Tensor, "n k"], group: Group
) -> Float[Tensor, ""]:
    """This worker's share of `function(all workers' rows)`, differentiable once; as `share_of`, where sums are not
    enough."""
    if group.size == 1:
        return function(rows)
    whole, start = gathered(rows.detach(), group)
    value = function(torch.cat((whole[:start], rows, whole[start + len(rows) :])))
    return value - value.detach() * (1 - 1 / group.size)


def share_of(
    function: Callable[[Float[Tensor, " s"]], Float[Tensor, ""]], sums: Float[Tensor, " s"], group: Group
) -> Float[Tensor, ""]:
    """This worker's share of `function(sums over all workers)`, differentiable once.

    A worker's gradient of it is the function's slope at the global sums times the gradient of its own sums: over
    workers that adds up to the whole gradient, with no collective that would have to be differentiated. The value is
    the whole one divided by the number of workers.
    """
    if group.size == 1:
        return function(sums)
    total = group.sum(sums.detach().clone()).requires_grad_()
    with torch.enable_grad():
        whole = function(total)
        (slope,) = torch.autograd.grad(whole, total)
    own = (slope * sums).sum()
    return own - own.detach() + whole.detach() / group.size
