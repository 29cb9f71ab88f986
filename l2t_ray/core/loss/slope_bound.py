"""Keeping a learned loss a loss: a bound on how hard it may push a sample towards its label, or away from it.

The hypergradient knows what the student's samples say of the loss, where they are now. Where none are, phi drifts, and
Adam drifts as fast on a small hypergradient as on a large one. On images that are all but learned two things happen:

- The loss turns over at small p_true, for no sample is there to object. The next sample that slips below is pushed
  away from its label, others follow, and a student at 99 % is below chance within five rounds.
- The slope at p_true = 1 grows to fifteen times cross-entropy's: within the K steps that are looked ahead, a larger
  learning rate nearly always helps. The student's steps leave what is stable, and the hypergradient, through a chaotic
  unroll, says nothing any more.

Under label noise a loss that pushes away a little is right: it takes back what was learned from wrong labels. With no
such push at all, digits with 40 % flips end at 75 % instead of 94 % (docs/log.md).

What is bounded is the network on its pairs. A memory pulls towards what it remembers, whatever the label, its weight
bounded by itself (`memory.MemoryTerm`); a channel has nothing that could push too hard.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.core.loss.network import LossNetworkSpec

_P_TRUE = torch.cat((torch.tensor([0.001, 0.01]), torch.linspace(0.05, 1.0, 20)))
_SHARES = torch.tensor([0.0, 0.1, 1.0])  # of what is left of the probability, that the other class of the pair has
_HALVINGS = 6
LEAST, MOST = -0.3, 1.0
"""Bounds of the push. In docs/log.md: what others did on clean digits at large rates, and under noise."""


def push(spec: LossNetworkSpec, phi: Float[Tensor, " m"]) -> Float[Tensor, " points"]:
    """How hard the loss pushes towards the label, in units of cross-entropy: -p_true dD / dp_true over a grid of pairs.

    It is 1 everywhere for -log p_true. Of a label-pair table the quartiles stand for all entries.
    """
    parts, own = spec.parts, spec.parts.split(phi.detach())
    pairs = torch.cat([torch.stack((_P_TRUE, (1 - _P_TRUE) * share), dim=1) for share in _SHARES]).to(phi)
    entries, quartiles = None, parts.table.quartiles(own.table)
    if quartiles is not None:
        entries = quartiles.repeat_interleave(len(pairs))
        pairs = pairs.repeat(len(quartiles), 1)
    pairs.requires_grad_()
    with torch.enable_grad():
        (slopes,) = torch.autograd.grad(parts.network.losses(own.network, pairs, entries).sum(), pairs)
    return -slopes[:, 0] * pairs[:, 0].detach()


class SlopeBound:
    """What a teacher does to phi after each of its steps (`LocalTeacher`).

    1. No pair is pushed away from its label by more than `LEAST` says: phi goes back, on the straight line to where it
       began, to a point where that holds (within 2^-6 of the line; all the way if it holds nowhere before).
    2. None is pushed harder than by cross-entropy: the loss, which is linear in its last layer, is scaled down.

    Where the loss breaks a bound as it begins, it is held to its own.

    Args:
        phi: where the loss begins.
    """

    def __init__(self, spec: LossNetworkSpec, phi: Float[Tensor, " m"]):
        self._spec, self._start = spec, phi.detach().cpu().clone()
        first = push(spec, self._start)
        self._least, self._most = min(LEAST, first.min().item()), max(MOST, first.max().item())

    def __call__(self, phi: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        phi = self._turned_back(phi)
        most = push(self._spec, phi).max().item()
        if most <= self._most:
            return phi
        scaled, parts = phi.clone(), self._spec.parts
        parts.network.scale(parts.split(scaled).network, self._most / most)
        return scaled

    def _turned_back(self, phi: Tensor) -> Tensor:
        if self._holds(phi):
            return phi
        kept, lost = 0.0, 1.0  # shares of the way from the start
        for _ in range(_HALVINGS):
            middle = (kept + lost) / 2
            kept, lost = (middle, lost) if self._holds(torch.lerp(self._start, phi, middle)) else (kept, middle)
        return torch.lerp(self._start, phi, kept)

    def _holds(self, phi: Tensor) -> bool:
        return push(self._spec, phi).min().item() >= self._least
