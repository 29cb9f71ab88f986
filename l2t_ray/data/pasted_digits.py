"""Real digit scans pasted on textured grounds: what the sets of scenes with masks and of canvases with boxes share."""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np
from jaxtyping import Float, UInt8

from l2t_ray.data.counted import numpy_generator
from l2t_ray.data.scans import digit_scans
from l2t_ray.extras import needed_by
from l2t_ray.interfaces import UserError

with needed_by("a scene of digits"):
    from PIL import Image

SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
"""Of the scans."""
RARITY = 0.75
"""How much rarer each digit is than the one before it."""
INK = 0.35
"""Share of full ink from which on a pixel belongs to the digit."""
SEED = 0
"""Whatever the run's seed: a test set that moves with the seed would compare runs on different images."""

Made = TypeVar("Made")


def made_of_digits(
    numbers: Mapping[str, int],
    make: Callable[[list[UInt8[np.ndarray, "_ 8 8"]], np.random.Generator], Made],
    *,
    parts: str,
    each: str,
) -> dict[str, list[Made]]:
    """So many images for each of the parts of `SHARES`; no scan is in two of them.

    Args:
        make: gives an image from scans by digit.
        parts, each: purposes of what is drawn: which scans are in which part, and for each image.

    Raises:
        UserError: if there would be no image to train or to test on.
    """
    for part, count in numbers.items():
        least = 0 if part == "validation" else 1
        if count < least:
            raise UserError(f"data.options.num_{part} must be at least {least}, got {count}.")
    scans, labels = digit_scans()
    order = numpy_generator(SEED, parts).permutation(len(labels))
    bounds = np.cumsum([round(share * len(labels)) for share in SHARES.values()])[:-1]
    made = {}
    for number, (part, rows) in enumerate(zip(SHARES, np.split(order, bounds), strict=True)):
        by_class = [scans[rows[labels[rows] == digit]] for digit in range(10)]
        made[part] = [make(by_class, numpy_generator(SEED, each, number, image)) for image in range(numbers[part])]
    return made


def drawn_digits(
    by_class: list[UInt8[np.ndarray, "_ 8 8"]],
    draw: np.random.Generator,
    digits: tuple[int, int],
    sizes: tuple[int, int],
    *,
    classes: int = 10,
    rarity: float = RARITY,
) -> Iterator[tuple[int, Float[np.ndarray, "s s"]]]:
    """Digits and their ink, 0 to 1, one after another; low ones are frequent. What is drawn for a digit comes before
    what its taker draws.

    Args:
        digits: from so many to so many, the latter not included.
        sizes: from such heights and widths to such, likewise.
        classes: the first so many digits.
        rarity: how much rarer each digit is than the one before it.
    """
    chances = rarity ** np.arange(classes)
    for digit in draw.choice(classes, draw.integers(*digits), p=chances / chances.sum()).tolist():
        scan = by_class[digit][draw.integers(len(by_class[digit]))]
        size = int(draw.integers(*sizes))
        yield digit, np.asarray(Image.fromarray(scan).resize((size, size), Image.Resampling.BILINEAR)) / 255


def brightness(draw: np.random.Generator) -> float:
    """Of a digit's ink: bright, or less often dark."""
    return draw.uniform(170, 250) if draw.random() < 0.7 else draw.uniform(0, 30)


def background(
    draw: np.random.Generator, size: int, *, level: tuple[float, float] = (70.0, 130.0), clouds: float = 25.0
) -> Float[np.ndarray, "s s"]:
    """Clouds of several sizes.

    Args:
        level: the least and the largest mean grey.
        clouds: standard deviation of the largest ones, in grey levels; smaller ones are fainter.
    """
    total = np.full((size, size), draw.uniform(*level))
    for cells, strength in ((3, clouds), (8, 0.6 * clouds), (20, 0.4 * clouds)):
        coarse = draw.normal(0, strength, (cells, cells)).astype(np.float32)
        total += np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
    return total
