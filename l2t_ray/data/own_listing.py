"""The images of a part before they are decoded."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from l2t_ray.data.pictures import Picture


class Listing(NamedTuple):
    """Pictures, the name of the class of each, and where it stands in the part as it was given."""

    pictures: Sequence[Picture]
    labels: Sequence[str]
    positions: Int[np.ndarray, " n"]
    num_rows: int
    """Of the part as given: pictures, and rows that were left out."""
    class_names: tuple[str, ...] | None
    """In the order of their numbers, where the part has its own; None: they are sorted."""
    notes: tuple[str, ...]
