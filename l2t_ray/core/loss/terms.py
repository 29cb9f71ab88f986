"""A learned combination of a task's own loss terms, with few numbers: the other family beside the loss network.

    sum_t sum_i w_i a_t(kind_i) c_t(value_i)

A term t (cross-entropy, an overlap, the error of a box) has kinds (classes, scales). a_t(kind) is its learned weight,
c_t a learned curve, increasing and piecewise linear; both are 1, the curve the identity, where phi is zero: the task's
own loss. Training begins there, or, with `balance`, where rare kinds count more, which can be counted and need not be
learned. Of a round's hypergradient the noise is several times the signal, and thousands of
weights walk at random where a dozen move (docs/log.md); published learned losses that win have 12 numbers (Auto
Seg-Loss, Li et al. 2021) to 40 (Parameterized AP Loss, Tao et al. 2021).

*The mean push stays fixed.* Within the few steps that a teacher looks ahead, a gentler loss nearly always looks better;
left free, a loss turns into a schedule of the learning rate. So weights times slopes are divided by their mean over all
kinds of all terms and all pieces of their curves, each counted by its share of the push (`shares`, `spread`): what is
learned is what to heed more than the rest, never how hard to push.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.core.loss.family import Bars, Curve, LossPicture, RowLosses
from l2t_ray.core.loss.term_sample import knots_at_quantiles, shares_of_kinds, spread_over_pieces
from l2t_ray.interfaces import Metrics, Task, Term, Terms, UserError

SCALE = 10.0
"""phi holds logarithms at a tenth of their effect: teachers' steps are about 1e-3, as in the loss network's tables."""


@dataclass(frozen=True)
class TermLossSpec:
    """Everything about a combination of terms but its weights (see `TermLoss`).

    Raises:
        ValueError: if there is no term, something is of no term or not positive, or is of another number.
    """

    kinds: dict[str, tuple[str, ...]]
    shares: dict[str, tuple[float, ...]]
    knots: dict[str, tuple[float, ...]]
    spread: dict[str, tuple[tuple[float, ...], ...]]
    balance: float = 0.0

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ValueError("a combination of loss terms needs a task that gives some.")
        for name, given in (("shares", self.shares), ("knots", self.knots), ("spread", self.spread)):
            if foreign := sorted(given.keys() - self.kinds.keys()):
                raise ValueError(f"{name} has {foreign[0]!r}, which is no term; terms are {', '.join(self.kinds)}.")
        for name, names in self.kinds.items():
            if not names or len(set(names)) != len(names):
                raise ValueError(f"kinds of {name} must be one name or more, each once, got {list(names)}.")
            own = self.shares.get(name, (1.0,) * len(names))
            if len(own) != len(names) or not all(0 < share < math.inf for share in own):
                raise ValueError(f"shares of {name} must be {len(names)} positive numbers, got {list(own)}.")
        for name, places in self.knots.items():
            if not all(a < b < math.inf for a, b in zip((0.0, *places), places, strict=False)):
                raise ValueError(f"knots of {name} must increase from above 0, got {list(places)}.")
        for name, rows in self.spread.items():
            shape = (len(self.kinds[name]), len(self.knots.get(name, ())) + 1)
            if len(rows) != shape[0] or not all(len(row) == shape[1] for row in rows):
                raise ValueError(f"spread of {name} must have {shape[0]} rows, its kinds, of {shape[1]} pieces.")
            if not all(0 < share < math.inf for row in rows for share in row):
                raise ValueError(f"spread of {name} must be positive numbers.")
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance must be 0 to 1, got {self.balance}.")

    @property
    def sizes(self) -> list[int]:
        """Weights of each term."""
        return [len(names) for names in self.kinds.values()]

    @property
    def curve_sizes(self) -> list[int]:
        """Pieces of each curve; their weights come behind the terms'."""
        return [len(places) + 1 for places in self.knots.values()]

    @property
    def num_weights(self) -> int:
        return sum(self.sizes) + sum(self.curve_sizes)


class TermLoss:
    """The family (`family.KeptFamily`).

    >>> TermLoss({"cross_entropy": ["sky", "road"], "jaccard": ["all"]}, shares={"cross_entropy": [0.7, 0.3]})

    Args:
        kinds: of each term, in order (`interfaces.Task.kinds`).
        shares: by term, how much of the push each kind has under the task's own loss, in any unit, the same for all
            terms (a class's share of the pixels); a term that is left out counts 1 a kind.
        knots: by term, increasing values > 0 at which its curve bends; a term that is left out has no curve.
        spread: by term, how the share of each kind is spread over the pieces of its curve, kind by kind, in any unit; a
            term that is left out has as much on each piece.
        balance: of each term's kinds, the weights begin as their shares to the power of -balance, the term's push as it
            was. 0: the task's own loss; 1/2: the root of the frequency, a usual choice (the gradient of a rare class is
            noisy as well as small); 1: all kinds push alike.

    Raises:
        ValueError: if there is no term, something is of no term or not positive, or is of another number.
    """

    family: ClassVar[str] = "terms"
    spec_type: ClassVar[type] = TermLossSpec
    reads_memory = False

    def __init__(
        self,
        kinds: Mapping[str, Sequence[str]],
        *,
        shares: Mapping[str, Sequence[float]] | None = None,
        knots: Mapping[str, Sequence[float]] | None = None,
        spread: Mapping[str, Sequence[Sequence[float]]] | None = None,
        balance: float = 0.0,
    ):
        self.spec = TermLossSpec(
            {name: tuple(names) for name, names in kinds.items()},
            {name: tuple(map(float, own)) for name, own in (shares or {}).items()},
            {name: tuple(map(float, places)) for name, places in (knots or {}).items()},
            {name: tuple(tuple(map(float, row)) for row in rows) for name, rows in (spread or {}).items()},
            float(balance),
        )
        self.kinds, self.knots = self.spec.kinds, self.spec.knots
        self._shares = {
            name: torch.tensor(self.spec.shares.get(name, (1.0,) * len(names)), dtype=torch.float64)
            for name, names in self.kinds.items()
        }
        self._spread = {name: self._spread_of(name) for name in self.knots}

    def _spread_of(self, name: str) -> Float[Tensor, "kinds pieces"]:
        even = ((1.0,) * (len(self.knots[name]) + 1),) * len(self.kinds[name])
        spread = torch.tensor(self.spec.spread.get(name, even), dtype=torch.float64)
        return spread / spread.sum(dim=1, keepdim=True)

    @classmethod
    def of(cls, spec: TermLossSpec) -> "TermLoss":
        return cls(spec.kinds, shares=spec.shares, knots=spec.knots, spread=spec.spread, balance=spec.balance)

    @classmethod
    def for_task(
        cls,
        task: Task,
        sample: Iterable[Terms] = (),
        *,
        num_pieces: int = 1,
        has_tail: bool = False,
        balance: float = 0.0,
    ) -> "TermLoss":
        """The combination of a task's own terms.

        Args:
            sample: what the task gives for some minibatches of a student at its beginning. Shares are then what the
                task's own loss gives rows there, and curves bend at quantiles of the values. None: terms count alike,
                and so do the kinds of each.
            num_pieces: of each term's curve, at most; 1: no curves, weights alone.
            has_tail: each curve has a further piece, of values beyond nearly all of the sample's.
            balance: as in `TermLoss`; needs a sample, which says what is rare.

        Raises:
            UserError: if the task has no terms, or curves or a balance are asked for without a sample.
        """
        if not task.kinds:
            raise UserError(
                f"a learned combination of loss terms needs a task that has some, and {task.name} has none; take the "
                "loss network."
            )
        given = list(sample)
        if (num_pieces > 1 or has_tail) and not given:
            raise UserError("curves bend at quantiles of the terms' values; give a sample.")
        if balance and not given:
            raise UserError(f"a balance of {balance:g} needs to know which kinds are rare; give a sample.")
        shares, knots, spread = {}, {}, {}
        for name, kinds in task.kinds.items():
            terms = [one.values[name] for one in given if name in one.values]
            shares[name] = shares_of_kinds(terms, len(kinds))
            if places := knots_at_quantiles(terms, num_pieces, has_tail=has_tail):
                knots[name] = places
                spread[name] = spread_over_pieces(terms, len(kinds), places).tolist()
        return cls(task.kinds, shares=shares, knots=knots, spread=spread, balance=balance)

    @property
    def num_weights(self) -> int:
        return self.spec.num_weights

    @property
    def phi(self) -> Float[Tensor, " m"]:
        """The task's own loss, which is zeros, or what `balance` makes of it."""
        phi = torch.zeros(self.num_weights)
        if self.spec.balance:
            logarithms = torch.cat([self._balanced(self._shares[name]) for name in self.kinds])
            phi[: len(logarithms)] = logarithms / SCALE
        return phi

    def _balanced(self, shares: Float[Tensor, " kinds"]) -> Float[Tensor, " kinds"]:
        raw = -self.spec.balance * shares.log()
        return raw - ((shares * raw.exp()).sum() / shares.sum()).log()

    @property
    def groups(self) -> dict[str, int]:
        """How many weights and pieces of a curve each term has, in the order of phi."""
        weights = {f"weight_{name}": len(kinds) for name, kinds in self.kinds.items()}
        return weights | {f"slope_{name}": len(places) + 1 for name, places in self.knots.items()}

    def weights(self, phi: Float[Tensor, " m"]) -> dict[str, Float[Tensor, " kinds"]]:
        """The weight of each kind of each term; the mean of weights times slopes, by shares, is 1."""
        logarithms = SCALE * phi[: sum(self.spec.sizes)]
        # Less the largest, which changes no ratio: e to the power of a logarithm that ran away is infinite.
        raw = (logarithms - logarithms.detach().max()).exp()
        slopes, shares = self.slopes(phi), {name: own.to(phi) for name, own in self._shares.items()}
        pushes = torch.cat(
            [
                own * (self._spread[name].to(phi) @ slopes[name]) if name in slopes else own
                for name, own in shares.items()
            ]
        )
        even = raw * (sum(own.sum() for own in shares.values()) / (pushes * raw).sum())
        return dict(zip(self.kinds, even.split(self.spec.sizes), strict=True))

    def slopes(self, phi: Float[Tensor, " m"]) -> dict[str, Float[Tensor, " pieces"]]:
        """Slopes of each curve between its knots; their mean, by shares, is 1."""
        pieces = phi[sum(self.spec.sizes) :].split(self.spec.curve_sizes)
        return {name: self._slopes_of(name, piece) for name, piece in zip(self.knots, pieces, strict=True)}

    def _slopes_of(self, name: str, numbers: Float[Tensor, " pieces"]) -> Float[Tensor, " pieces"]:
        logarithms, kinds = SCALE * numbers, self._shares[name]
        raw, shares = (
            (logarithms - logarithms.detach().max()).exp(),
            (kinds @ self._spread[name] / kinds.sum()).to(numbers),
        )
        return raw / (shares * raw).sum()

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
        given = self._of(terms)
        weighed = [self._weighed(phi, name, term) for name, term in given.items()]
        return RowLosses(
            torch.cat(weighed),
            torch.cat([term.weights for term in given.values()]),
            torch.cat([term.owner for term in given.values()]),
        )

    def _weighed(self, phi: Tensor, name: str, term: Term) -> Tensor:
        dtype = torch.promote_types(phi.dtype, term.values.dtype)  # a student in double precision is evaluated in it
        phi, values = phi.to(dtype), term.values.to(dtype)
        return self.weights(phi)[name][term.kinds] * self.curve(phi, name, values)

    def loss(
        self, phi: Float[Tensor, " m"], terms: Terms | Mapping[str, Term | Tensor | tuple[Tensor, Tensor]]
    ) -> Float[Tensor, ""]:
        """The weighed sum of the terms.

        Args:
            terms: what the task gives; or by name the values `[n]` of a term, whose rows then count 1 / n, or their
                mean `[]`, with the kind `[n]` of each where there are several: `{"cross_entropy": (losses, classes)}`.

        Raises:
            ValueError: if these are other terms or kinds than those that the loss was learned for.
        """
        if not isinstance(terms, Terms):
            values = {name: self._as_term(name, term) for name, term in terms.items()}
            terms = Terms(next((term.values for term in values.values()), phi), values=values)
        for name, term in self._of(terms).items():
            if len(term.kinds) and not 0 <= int(term.kinds.min()) <= int(term.kinds.max()) < len(self.kinds[name]):
                raise ValueError(
                    f"kinds of {name} must be below {len(self.kinds[name])} ({', '.join(self.kinds[name])}), "
                    f"got {int(term.kinds.min())} to {int(term.kinds.max())}."
                )
        rows = self.losses(phi, terms, None)
        total = (rows.weights * rows.values).sum()
        return total if terms.rest is None else total + terms.rest

    def _as_term(self, name: str, given: Term | Tensor | tuple[Tensor, Tensor]) -> Term:
        if isinstance(given, Term):
            return given
        values, kinds = (given, None) if isinstance(given, Tensor) else given
        if kinds is None and len(self.kinds.get(name, ())) > 1:
            raise ValueError(
                f"{name} has the kinds {', '.join(self.kinds[name])}; give (values, kinds), with the kind of each row."
            )
        values = values.reshape(-1)
        rows = torch.arange(len(values), device=values.device)
        kinds = torch.zeros_like(rows) if kinds is None else kinds
        return Term(values, torch.full_like(values, 1 / max(1, len(values))), kinds, rows)

    def fixed(self, terms: Terms) -> Float[Tensor, " n"]:
        return torch.cat([term.values for term in self._of(terms).values()])

    def report(self, phi: Float[Tensor, " m"]) -> Metrics:
        """`weight_<term>_<kind>` and `slope_<term>_<piece>`."""
        named = {
            f"weight_{name}_{kind}": weight
            for name, weights in self.weights(phi).items()
            for kind, weight in zip(self.kinds[name], weights.tolist(), strict=True)
        }
        return named | slope_metrics(self.slopes(phi))

    def check(self, task: Task, num_classes: int | None = None) -> None:
        del num_classes  # classes are kinds
        own = {name: tuple(kinds) for name, kinds in task.kinds.items()}
        if own != self.kinds:
            raise ValueError(f"combines {_listed(self.kinds)}, and the {task.name} task gives {_listed(own)}")

    def describe(self, phi: Float[Tensor, " m"]) -> str:
        weights = self.weights(phi)
        rows = [
            f"| {name} | {kind} | {weight:.3g} |"
            for name, kinds in self.kinds.items()
            for kind, weight in zip(kinds, weights[name].tolist(), strict=True)
        ]
        sloped = [
            f"The curve of {name} bends at {', '.join(f'{x:.3g}' for x in self.knots[name])}; its slopes are "
            f"{', '.join(f'{slope:.3g}' for slope in slopes.tolist())}.\n"
            for name, slopes in self.slopes(phi).items()
        ]
        table = "\n".join(["| term | kind | weight |", "|---|---|---|", *rows, ""])
        return "\n".join([f"It is a combination of loss terms: {len(phi)} weights in all.\n", table, *sloped, _USAGE])

    def pictures(self, phi: Float[Tensor, " m"]) -> list[LossPicture]:
        """The weights of each term's kinds, and the curves, up to half as far again as their last knots."""
        bars = [
            Bars(
                f"weights of {name}", dict(zip(self.kinds[name], weights.tolist(), strict=True)), 1.0, f"weight_{name}_"
            )
            for name, weights in self.weights(phi).items()
        ]
        curves = []
        for name, places in self.knots.items():
            x = (0.0, *places, 1.5 * places[-1])
            y = self.curve(phi, name, phi.new_tensor(x)).tolist()
            curves.append(Curve(f"curve of {name}", x, y, f"slope_{name}_"))
        return [*bars, *curves]

    def _of(self, terms: Terms) -> dict[str, Term]:
        if terms.values.keys() != self.kinds.keys():
            given = ", ".join(terms.values) or "none"
            raise ValueError(f"a loss of the terms {', '.join(self.kinds)} was given {given}.")
        return {name: terms.values[name] for name in self.kinds}


def slope_metrics(slopes: Mapping[str, Float[Tensor, " pieces"]]) -> Metrics:
    """`slope_<curve>_<piece>` of each piece of each curve."""
    return {f"slope_{name}_{piece}": slope for name, own in slopes.items() for piece, slope in enumerate(own.tolist())}


_USAGE = """```python
import l2t_ray

loss = l2t_ray.LearnedLoss.load("loss.safetensors")
loss(task.terms(student(batch.inputs), batch)).backward()
```

Without a task it takes the values of each term by name, with the kind of each row where there are several:
`loss({"cross_entropy": (losses, classes)})`.
"""


def _listed(kinds: Mapping[str, Sequence[str]]) -> str:
    if not kinds:
        return "no terms"
    return "the terms " + " and ".join(f"{name} ({', '.join(names)})"[:200] for name, names in kinds.items())
