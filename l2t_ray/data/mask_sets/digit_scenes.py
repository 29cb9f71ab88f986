"""Scenes composed of real scanned digits, with exact masks: a set for segmentation that needs no file.

Several bright digits lie beside one another on a textured, noisy background, in several sizes. Low digits are frequent
and high ones rare, as classes are in photographs. No scan is in two of the parts.
"""

import numpy as np
from jaxtyping import UInt8

from l2t_ray.data.dataset import pixel_statistics
from l2t_ray.data.mask_sets.coding import IGNORE
from l2t_ray.data.masked_sets import MaskedDataset, MaskedSet
from l2t_ray.data.pasted_digits import INK, background, drawn_digits, made_of_digits

CLASSES = ("background", *map(str, range(10)))
SIZE = 64
DIGITS = (2, 6)
"""A scene has from so many digits to so many, the latter not included; fewer where there is no room."""
SCAN_SIZES = (20, 33)
"""Heights and widths of digits, in pixels: their strokes are as wide as what a small student tells apart."""
TRIES = 20
"""Places that are tried for a digit before it is left out."""
RARITY = 0.85
"""How much rarer each digit is than the one before it."""
GREY, INK_GREY = (80.0, 120.0), (200.0, 250.0)
"""Of the background on average, and of ink: a digit that cannot be seen would be labelled all the same."""


def open_digit_scenes(*, num_train: int = 400, num_validation: int = 100, num_test: int = 200) -> MaskedDataset:
    """Scenes of 64 x 64 pixels in three parts; the same on every machine.

    Args:
        num_train, num_validation, num_test: scenes in each part; without any for validation, they are to be chosen.

    Raises:
        UserError: if there would be no scene to train or to test on.
    """
    numbers = {"train": num_train, "validation": num_validation, "test": num_test}
    made = made_of_digits(numbers, _scene, parts="digit-scenes-parts", each="digit-scene")
    train = [*made["train"], *made["validation"]]
    mean, std = pixel_statistics(np.stack([image for image, _ in made["train"]]))
    apart = np.arange(num_train, len(train)) if num_validation else None
    return MaskedDataset("digit_scenes", _set(train), _set(made["test"]), mean, std, apart)


def _set(pairs: list[tuple[np.ndarray, np.ndarray]]) -> MaskedSet:
    names = [f"scene {number}" for number in range(len(pairs))]
    return MaskedSet(pairs, np.full((len(pairs), 2), SIZE), CLASSES, IGNORE, names)


def _scene(
    by_class: list[UInt8[np.ndarray, "_ 8 8"]], draw: np.random.Generator
) -> tuple[UInt8[np.ndarray, "1 s s"], UInt8[np.ndarray, "s s"]]:
    pixels, mask = background(draw, SIZE, level=GREY, clouds=15.0), np.zeros((SIZE, SIZE), dtype=np.uint8)
    for digit, ink in drawn_digits(by_class, draw, DIGITS, SCAN_SIZES, rarity=RARITY):
        size, level = len(ink), draw.uniform(*INK_GREY)
        for top, left in draw.integers(0, SIZE - size, (TRIES, 2), endpoint=True).tolist():
            place = np.s_[top : top + size, left : left + size]
            if mask[place][ink >= INK].any():
                continue
            pixels[place] += ink * (level - pixels[place])
            mask[place][ink >= INK] = digit + 1
            break
    pixels += draw.normal(0, 8, pixels.shape)
    return pixels.round().clip(0, 255).astype(np.uint8)[None], mask
