"""How hard a learned loss pushes, next to cross-entropy, and a limit on it.

A hypergradient looks K steps ahead. Within those, a steeper loss is a larger learning rate, and a larger one nearly
always helps on images that are all but learned: left alone, the loss becomes fifteen times as steep at p_true = 1 and
all but flat at p_true = 0, until the student's steps are beyond what is stable. A learning rate then means nothing any
more. Held below a ceiling, the loss has its shape to teach with, and its scale only downwards.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.core.loss_network import TABLE_SCALE, LossNetworkSpec, layer_weights, pair_losses

_P_TRUE = torch.cat((torch.tensor([0.001, 0.01]), torch.linspace(0.05, 1.0, 20)))
_SHARES = torch.tensor([0.0, 0.1, 1.0])  # of what is left of the probability, that the other class of the pair has


def steepness(spec: LossNetworkSpec, phi: Float[Tensor, " m"]) -> float:
    """The largest push at the logits over pairs of probabilities, in units of cross-entropy's on the same pair.

    A loss -log p_true has p_true |dD / dp_true| = 1 everywhere, and the push of a sample is that times
    cross-entropy's. The slope in p_other reaches the logits as one of C - 1 pairs, and is measured with two classes.

    Args:
        phi: weights; of a label-pair table the quartiles stand for all entries.
    """
    pairs = torch.cat([torch.stack((_P_TRUE, (1 - _P_TRUE) * share), dim=1) for share in _SHARES]).to(phi)
    entries = None
    if spec.label_table is not None:
        table = TABLE_SCALE * phi[-spec.num_entries :].detach().view(spec.label_table, spec.label_table)
        others = table[~torch.eye(len(table), dtype=torch.bool)]
        quartiles = torch.quantile(others, torch.linspace(0, 1, 5).to(others))
        entries = quartiles.repeat_interleave(len(pairs))
        pairs = pairs.repeat(len(quartiles), 1)
    pairs.requires_grad_()
    with torch.enable_grad():
        (slopes,) = torch.autograd.grad(pair_losses(spec, phi.detach(), pairs, entries).sum(), pairs)
    in_true = (slopes[:, 0] * pairs[:, 0].detach()).abs().max()
    in_other = slopes[:, 1].abs().max() / max(1, (spec.num_classes or 2) - 1)
    return torch.maximum(in_true, in_other).item()


def limited(spec: LossNetworkSpec, phi: Float[Tensor, " m"], ceiling: float) -> Float[Tensor, " m"]:
    """`phi`, scaled down as a whole where the loss is steeper than `ceiling`: it is linear in its last layer."""
    steep = steepness(spec, phi)
    if steep <= ceiling:
        return phi
    last = phi.clone()
    layer_weights(spec, last)[-1].mul_(ceiling / steep)
    return last
