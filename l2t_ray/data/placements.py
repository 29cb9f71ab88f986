"""Where images come to lie in a frame: what is drawn for crops of images with masks and with boxes alike."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

Augment = Literal["none", "flip", "crop", "crop_flip"]


def drawn_placements(
    generator: np.random.Generator, size: int, augment: Augment, scale: tuple[float, float]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
    """Scales, places (each in [0, 1)) and flips. As much is drawn whatever `augment` makes of it: `crop` mirrors none,
    `flip` leaves images at their own scale and in the middle, `none` does neither."""
    scales = generator.uniform(*scale, size)
    places = generator.random((size, 2))
    flips = generator.random(size) < 0.5
    if augment in ("none", "flip"):
        scales, places = np.ones(size), np.full((size, 2), 0.5)
    if augment in ("none", "crop"):
        flips = np.zeros(size, dtype=bool)
    return scales, places, flips


def start_of(share: float, free: int) -> int:
    """Where something begins along an axis with `free` pixels to choose from (negative: it reaches beyond): at the top
    for a share of 0, at the other end for nearly 1."""
    return int(np.copysign(np.floor(share * (abs(free) + 1)), free))
