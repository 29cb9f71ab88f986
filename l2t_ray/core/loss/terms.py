"""A learned combination of a task's own loss terms, with few numbers: the other family beside the loss network.

    sum_t sum_i w_i a_t(kind_i) c_t(value_i)

A term t (cross-entropy, an overlap, the error of a box) has kinds (classes, scales). a_t(kind) is its learned weight,
c_t a learned curve, increasing and piecewise linear; both are 1, the curve the identity, where phi is zero: training
begins with the task's own loss. Of a round's hypergradient the noise is several times the signal, and thousands of
weights walk at random where a dozen move (docs/log.md); published learned losses that win have 12 numbers (Auto
Seg-Loss, Li et al. 2021) to 40 (Parameterized AP Loss, Tao et al. 2021).

*The mean push stays fixed.* Within the few steps that a teacher looks ahead, a gentler loss nearly always looks better;
left free, a loss turns into a schedule of the learning rate. So weights are divided by their mean over all kinds of all
terms, each counted by its share of the push (`shares`), and a curve's slopes by theirs: what is learned is what to heed
more than the rest, never how hard to push.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.core.loss.family import RowLosses
from l2t_ray.interfaces import Metrics, Term, Terms

SCALE = 10.0
"""phi holds logarithms at a tenth of their effect: teachers' steps are about 1e-3, as in the loss network's tables."""


class TermLoss:
    """The family (`loss_family.LossFamily`).

    >>> TermLoss({"cross_entropy": ["sky", "road"], "jaccard": ["all"]}, shares={"cross_entropy": [0.7, 0.3]})

    Args:
        kinds: of each term, in order (`interfaces.Task.kinds`).
        shares: by term, how much of the push each kind has under the task's own loss, in any unit, the same for all
            terms (a class's share of the pixels); a term that is left out counts 1 a kind.
        knots: by term, increasing values > 0 at which its curve bends; a term that is left out has no curve.

    Raises:
        ValueError: if there is no term, shares or knots are of no term or not positive, or are of another number.
    """

    reads_memory = False

    def __init__(
        self,
        kinds: Mapping[str, Sequence[str]],
        *,
        shares: Mapping[str, Sequence[float]] | None = None,
        knots: Mapping[str, Sequence[float]] | None = None,
    ):
        shares, knots = dict(shares or {}), dict(knots or {})
        if not kinds:
            raise ValueError("a combination of loss terms needs a task that gives some.")
        for name, given in (("shares", shares), ("knots", knots)):
            if foreign := sorted(given.keys() - kinds.keys()):
                raise ValueError(f"{name} has {foreign[0]!r}, which is no term; terms are {', '.join(kinds)}.")
        self.kinds = {name: tuple(names) for name, names in kinds.items()}
        self.knots = {name: tuple(float(x) for x in places) for name, places in knots.items()}
        for name, places in self.knots.items():
            if any(a >= b for a, b in zip((0.0, *places), places, strict=False)):
                raise ValueError(f"knots of {name} must increase from above 0, got {list(places)}.")
        self.shares = torch.cat([_shares_of(name, names, shares) for name, names in self.kinds.items()])
        self._sizes = [len(names) for names in self.kinds.values()]
        self._curve_sizes = [len(places) + 1 for places in self.knots.values()]

    @property
    def num_weights(self) -> int:
        return sum(self._sizes) + sum(self._curve_sizes)

    @property
    def phi(self) -> Float[Tensor, " m"]:
        """Zeros: the task's own loss."""
        return torch.zeros(self.num_weights)

    def weights(self, phi: Float[Tensor, " m"]) -> dict[str, Float[Tensor, " kinds"]]:
        """The weight of each kind of each term; their mean, by shares, is 1."""
        logarithms = SCALE * phi[: sum(self._sizes)]
        # Less the largest, which changes no ratio: e to the power of a logarithm that ran away is infinite.
        raw, shares = (logarithms - logarithms.detach().max()).exp(), self.shares.to(phi)
        even = raw * (shares.sum() / (shares * raw).sum())
        return dict(zip(self.kinds, even.split(self._sizes), strict=True))

    def slopes(self, phi: Float[Tensor, " m"]) -> dict[str, Float[Tensor, " pieces"]]:
        """Slopes of each curve between its knots; their mean is 1."""
        pieces = phi[sum(self._sizes) :].split(self._curve_sizes)
        return {
            name: (SCALE * piece).softmax(dim=0) * len(piece) for name, piece in zip(self.knots, pieces, strict=True)
        }

    def curve(self, phi: Float[Tensor, " m"], name: str, values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """c_t of these values; themselves where the term has no curve."""
        if name not in self.knots:
            return values
        slopes, places = self.slopes(phi)[name], values.new_tensor((0.0, *self.knots[name]))
        lengths = places.diff()
        # What of each piece lies below the value; the last one has no end.
        inside = torch.minimum((values[:, None] - places[:-1]).clamp(min=0), lengths)
        beyond = (values - places[-1]).clamp(min=0)
        return inside @ slopes[:-1] + beyond * slopes[-1] + values.clamp(max=0) * slopes[0]

    def losses(self, phi: Float[Tensor, " m"], terms: Terms, memory: Float[Tensor, "n c"] | None) -> RowLosses:
        del memory
        weights = self.weights(phi)
        values = [
            weights[name][term.kinds] * self.curve(phi, name, term.values) for name, term in self._of(terms).items()
        ]
        return _joined(values, self._of(terms))

    def fixed(self, terms: Terms) -> Float[Tensor, " n"]:
        return torch.cat([term.values for term in self._of(terms).values()])

    def report(self, phi: Float[Tensor, " m"]) -> Metrics:
        """`weight_<term>_<kind>` and `slope_<term>_<piece>`."""
        named = {
            f"weight_{name}_{kind}": weight
            for name, weights in self.weights(phi).items()
            for kind, weight in zip(self.kinds[name], weights.tolist(), strict=True)
        }
        sloped = {
            f"slope_{name}_{piece}": slope
            for name, slopes in self.slopes(phi).items()
            for piece, slope in enumerate(slopes.tolist())
        }
        return named | sloped

    def _of(self, terms: Terms) -> dict[str, Term]:
        if terms.values.keys() != self.kinds.keys():
            raise ValueError(f"a loss of the terms {', '.join(self.kinds)} was given {', '.join(terms.values)}.")
        return {name: terms.values[name] for name in self.kinds}


def _shares_of(name: str, kinds: Sequence[str], shares: Mapping[str, Sequence[float]]) -> Tensor:
    own = torch.tensor([float(share) for share in shares.get(name, [1.0] * len(kinds))], dtype=torch.float64)
    if len(own) != len(kinds) or not bool((own > 0).all()):
        raise ValueError(f"shares of {name} must be {len(kinds)} positive numbers, got {own.tolist()}.")
    return own


def _joined(values: Sequence[Tensor], terms: Mapping[str, Term]) -> RowLosses:
    weights = torch.cat([term.weights for term in terms.values()])
    owner = torch.cat([term.owner for term in terms.values()])
    return RowLosses(torch.cat(list(values)), weights, owner)
