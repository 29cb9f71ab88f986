"""What a combination of loss terms needs to know of a task's terms, read from minibatches (`TermLoss.for_task`)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from l2t_ray.interfaces import Term

LEAST_SHARE = 1e-3
"""Of a kind, or a piece of a curve, that the sample has none of, in units of an even share: no weight is unbounded."""


def shares_of_kinds(terms: Sequence[Term], num_kinds: int) -> list[float]:
    """What the rows of each kind count, on average over minibatches; alike, and 1 together, where none counts."""
    even, counts = torch.full((num_kinds,), 1 / num_kinds, dtype=torch.float64), _counts(terms)
    if not counts.any():
        return even.tolist()
    kinds = torch.cat([term.kinds for term in terms]).cpu()
    return _at_least_some(torch.zeros_like(even).index_add_(0, kinds, counts / len(terms))).tolist()


TAIL = 0.99
"""The quantile beyond which a row counts as one of the tail."""


def knots_at_quantiles(terms: Sequence[Term], num_pieces: int, *, has_tail: bool = False) -> list[float]:
    """Distinct positive values that cut those of the rows into as many parts that count alike, or nearly, and one
    beyond which nearly none lies (`TAIL`), if asked for."""
    values = _values(terms)
    quantiles = torch.linspace(0, 1, num_pieces + 1, dtype=torch.float64)[1:-1]
    if has_tail:
        quantiles = torch.cat((quantiles, torch.tensor([TAIL], dtype=torch.float64)))
    if not len(quantiles) or not len(values):
        return []
    # Half way between two rows: a row at a knot would be in no piece.
    order = values.sort().values
    places = (quantiles * len(order)).long().clamp(min=1, max=len(order) - 1)
    middles = (order[places - 1] + order[places]) / 2
    return sorted({value for value in middles.tolist() if value > 0})


def spread_over_pieces(terms: Sequence[Term], num_kinds: int, knots: Sequence[float]) -> Float[Tensor, "kinds pieces"]:
    """How what each kind's rows count is spread over the pieces of a curve; rows add up to 1."""
    kinds, num_pieces = torch.cat([term.kinds for term in terms]).cpu(), len(knots) + 1
    pieces: Int[Tensor, " n"] = torch.bucketize(_values(terms), torch.tensor(knots, dtype=torch.float64), right=True)
    sums = torch.zeros(num_kinds * num_pieces, dtype=torch.float64)
    sums = sums.index_add_(0, kinds * num_pieces + pieces, _counts(terms)).view(num_kinds, num_pieces)
    spread = torch.stack([_at_least_some(own) if own.any() else torch.ones_like(own) for own in sums])
    return spread / spread.sum(dim=1, keepdim=True)


def _at_least_some(shares: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    return shares.clamp(min=LEAST_SHARE * shares.mean().item())


def _values(terms: Sequence[Term]) -> Float[Tensor, " n"]:
    return torch.cat([torch.zeros(0), *(term.values.detach().cpu() for term in terms)]).double()


def _counts(terms: Sequence[Term]) -> Float[Tensor, " n"]:
    return torch.cat([torch.zeros(0), *(term.weights.detach().cpu() for term in terms)]).double()
