"""Parts of an adjusted cross-entropy (`adjusted.py`): logit shifts by class, and single numbers.

Each keeps the push at cross-entropy's: within the few steps that a teacher looks ahead, a gentler loss nearly always
looks better, and a loss left free turns into a schedule of the learning rate. Adding the same to all shifts changes
nothing, so they have the mean 0. For the numbers a constant is known in closed form (`mean_push_of_power`,
`mean_push_of_smoothing`): the mean size of the derivative in the label's logit, over answers p_y that are spread evenly
between 0 and 1, in units of cross-entropy's. The loss is divided by it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from l2t_ray.core.loss.family import Bars, LossPicture
from l2t_ray.core.loss.pairs import TABLE_SCALE
from l2t_ray.core.loss.part import Part
from l2t_ray.interfaces import Metrics

REPORTED_CLASSES = 20
"""Of more classes the smallest and the largest shift are reported, not each."""
_SMALL = 0.03


@dataclass(frozen=True)
class Shifts(Part):
    """What is added to the logit of each class; where its entries are zero, `start` less its mean. Empty: nothing."""

    start: tuple[float, ...] = ()

    @property
    def num_weights(self) -> int:
        return len(self.start)

    def shifts(self, entries: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
        raw = torch.tensor(self.start).to(entries) + TABLE_SCALE * entries
        return raw - raw.mean()

    def shifted(self, entries: Float[Tensor, " m"], logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return logits + self.shifts(entries) if self.start else logits

    def report(self, numbers: Float[Tensor, " c"]) -> Metrics:
        shifts = self.shifts(numbers).tolist() if self.start else []
        if len(shifts) > REPORTED_CLASSES:
            return {"shift_least": min(shifts), "shift_most": max(shifts)}
        return {f"shift_{label}": shift for label, shift in enumerate(shifts)}

    def describe(self, numbers: Float[Tensor, " c"]) -> str:
        if not self.start:
            return ""
        shifts = self.shifts(numbers)
        least, most = int(shifts.argmin()), int(shifts.argmax())
        return (
            "In training it adds a number to the logit of each class, and in use nothing is added: from "
            f"{shifts[least]:.2f} (class {least}) to {shifts[most]:.2f} (class {most}).\n"
        )

    def pictures(self, numbers: Float[Tensor, " c"]) -> list[LossPicture]:
        if not self.start:
            return []
        drawn: list[LossPicture] = [Bars("logit shifts", _by_class(self.shifts(numbers)), start=0.0)]
        if len(set(self.start)) > 1:
            learned = self.shifts(numbers) - self.shifts(torch.zeros_like(numbers))
            drawn.append(Bars("logit shifts beyond those it began with", _by_class(learned), start=0.0))
        return drawn


@dataclass(frozen=True)
class Number(Part):
    """A learned number between two bounds, `neutral` where its entry is zero; it may be left out (`is_learned`)."""

    name: str
    neutral: float
    least: float
    most: float
    is_learned: bool

    @property
    def num_weights(self) -> int:
        return int(self.is_learned)

    def value(self, entry: Float[Tensor, " m"]) -> Float[Tensor, "1"] | None:
        """None: it is left out."""
        if not self.is_learned:
            return None
        # Of one dimension: forward mode makes double precision of numbers and a tensor of none.
        raw = self.neutral + TABLE_SCALE * entry
        is_within = (raw >= self.least) & (raw <= self.most)
        # A clamp alone has no derivative at its bounds, where smoothing and power begin.
        return torch.where(is_within, raw, raw.detach().clamp(self.least, self.most))

    def within_bounds(self, entry: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """The entry, back where its number is no longer cut off: beyond, nothing is learned of it."""
        return entry.clamp((self.least - self.neutral) / TABLE_SCALE, (self.most - self.neutral) / TABLE_SCALE)

    def report(self, numbers: Float[Tensor, " m"]) -> Metrics:
        value = self.value(numbers)
        return {} if value is None else {self.name: value.item()}

    def describe(self, numbers: Float[Tensor, " m"]) -> str:
        value = self.value(numbers)
        return "" if value is None else f"Its {self.name} is {value.item():.3g} ({self.neutral:g}: cross-entropy's).\n"

    def pictures(self, numbers: Float[Tensor, " m"]) -> list[LossPicture]:
        value = self.value(numbers)
        return [] if value is None else [Bars(self.name, {self.name: value.item()}, start=self.neutral)]


def powered(log_p: Float[Tensor, "*shape"], power: Float[Tensor, "1"] | None) -> Float[Tensor, "*shape"]:
    """`(1 - p^q) / q` (generalised cross-entropy: Zhang & Sabuncu 2018); -log p where q is zero or None.

    It is written as -log p times (e^x - 1) / x, x = q log p, which is smooth in q at zero.
    """
    if power is None:
        return -log_p
    x = power * log_p
    is_small = x.abs() < _SMALL
    safe = torch.where(is_small, torch.ones_like(x), x)
    # To the sixth term: 4e-14 at the joint, where the quotient has lost as much in its second derivative.
    series = 1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6))))
    return -log_p * torch.where(is_small, series, safe.expm1() / safe)


def mean_push_of_power(power: Float[Tensor, "1"]) -> Float[Tensor, "1"]:
    """Of `powered`, in units of cross-entropy: the derivative in the label's logit is p^q (1 - p), on average over p in
    (0, 1) this is 1 / ((1 + q) (2 + q)), and half where q is zero."""
    return 2 / ((1 + power) * (2 + power))


def mean_push_of_smoothing(amount: Float[Tensor, "1"], num_classes: int) -> Float[Tensor, "1"]:
    """Of label smoothing, in units of cross-entropy: the derivative in the label's logit is p - a, with a the share of
    the target that is left to the label, and the mean size of that over p in (0, 1) is (a^2 + (1 - a)^2) / 2."""
    left = 1 - amount * (1 - 1 / num_classes)
    return left**2 + (1 - left) ** 2


def _by_class(values: Float[Tensor, " c"]) -> dict[str, float]:
    return {str(label): value for label, value in enumerate(values.tolist())}
