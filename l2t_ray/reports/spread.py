"""Several runs of the same thing, in one number with its uncertainty."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

MISSING = "–"


class Spread(NamedTuple):
    """Mean, sample standard deviation (None with fewer than two values) and number of values."""

    mean: float
    std: float | None
    n: int

    def shown(self, *, factor: float | int = 1, digits: int = 2) -> str:
        """`47.83 ± 1.20 (3)`: the mean, the standard deviation and the number of runs."""
        mean = f"{factor * self.mean:.{digits}f}"
        return f"{mean} (1)" if self.std is None else f"{mean} ± {factor * self.std:.{digits}f} ({self.n})"


def spread(values: Iterable[float | int | None]) -> Spread | None:
    """The spread of the values there are; None if there are none.

    The standard deviation is the one of a sample (n - 1), as for runs that stand for others with other seeds.
    """
    known = np.array([value for value in values if value is not None], dtype=float)
    if not len(known):
        return None
    return Spread(float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else None, len(known))


def spread_text(value: Spread | None, *, factor: float | int = 1, digits: int = 2) -> str:
    """As `Spread.shown`, and a dash where there is nothing."""
    return MISSING if value is None else value.shown(factor=factor, digits=digits)
