"""Which classes a loss network with a table of label pairs weighs up: how hard it pushes rows towards their labels."""

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.core.loss.network import LossNetworkSpec, Pieces
from l2t_ray.core.loss.pairs import LabelTable

_P_TRUE = torch.linspace(0.1, 0.9, 5)
_SHARES = torch.tensor([0.1, 1.0])  # of what is left of the probability, that the other class of the pair has
_MOST_CLASSES = 40
"""Of more classes nobody can follow each, and a round would have to pay for them."""


def class_weights(spec: LossNetworkSpec, own: Pieces) -> Float[Tensor, " c"] | None:
    """The push -p_true dD / dp_true towards each class, a mean over its pairs, relative to the mean of all classes.

    Returns:
        None: the loss has no table, and treats all classes alike; or there are too many.
    """
    table = spec.parts.table
    if not isinstance(table, LabelTable) or table.num_classes > _MOST_CLASSES:
        return None
    numbers = own.table.detach()
    labels = torch.arange(table.num_classes, device=numbers.device)
    entries = table.of_pairs(numbers, labels)[..., None]
    points = torch.cat([torch.stack((_P_TRUE, (1 - _P_TRUE) * share), dim=1) for share in _SHARES]).to(numbers)
    pairs = points.expand(*entries.shape[:2], -1, -1).clone().requires_grad_()
    with torch.enable_grad():
        losses = spec.parts.network.losses(own.network.detach(), pairs, entries.expand(pairs.shape[:-1]))
        (slopes,) = torch.autograd.grad(losses.sum(), pairs)
    push = -(slopes[..., 0] * points[:, 0]).mean(dim=(1, 2))
    return push / push.mean()
