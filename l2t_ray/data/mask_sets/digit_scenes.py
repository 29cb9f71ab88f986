"""Scenes composed of real scanned digits, with exact masks: a set for segmentation that needs no file.

Several digits lie on a textured, noisy background, in several sizes, bright or dark, the later ones over the earlier
ones. Low digits are frequent and high ones rare, as classes are in photographs. No scan is in two of the parts.
"""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from l2t_ray.data.counted import numpy_generator
from l2t_ray.data.dataset import pixel_statistics
from l2t_ray.data.mask_sets.coding import IGNORE
from l2t_ray.data.masked_sets import MaskedDataset, MaskedSet
from l2t_ray.data.scans import digit_scans
from l2t_ray.interfaces import UserError

CLASSES = ("background", *map(str, range(10)))
SIZE = 64
SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
"""Of the scans."""
RARITY = 0.75
"""How much rarer each digit is than the one before it."""
DIGITS = (3, 8)
"""A scene has from so many digits to so many, the latter not included."""
SCAN_SIZES = (12, 29)
"""Heights and widths of digits, in pixels."""
INK = 0.35
"""Share of full ink from which on a pixel belongs to the digit."""
SEED = 0
"""Whatever the run's seed: a test set that moves with the seed would compare runs on different images."""


def open_digit_scenes(*, num_train: int = 400, num_validation: int = 100, num_test: int = 200) -> MaskedDataset:
    """Scenes of 64 x 64 pixels in three parts; the same on every machine.

    Args:
        num_train, num_validation, num_test: scenes in each part; without any for validation, they are to be chosen.

    Raises:
        UserError: if there would be no scene to train or to test on.
    """
    for key, count, least in (
        *(("num_train", num_train, 1), ("num_validation", num_validation, 0), ("num_test", num_test, 1)),
    ):
        if count < least:
            raise UserError(f"data.options.{key} must be at least {least}, got {count}.")
    scans, labels = digit_scans()
    numbers = {"train": num_train, "validation": num_validation, "test": num_test}
    order = numpy_generator(SEED, "digit-scenes-parts").permutation(len(labels))
    bounds = np.cumsum([round(share * len(labels)) for share in SHARES.values()])[:-1]
    made = {}
    for number, (part, rows) in enumerate(zip(SHARES, np.split(order, bounds), strict=True)):
        by_class = [scans[rows[labels[rows] == digit]] for digit in range(10)]
        made[part] = [
            _scene(by_class, numpy_generator(SEED, "digit-scene", number, scene)) for scene in range(numbers[part])
        ]
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
    pixels, mask = background(draw, SIZE), np.zeros((SIZE, SIZE), dtype=np.uint8)
    chances = RARITY ** np.arange(10)
    for digit in draw.choice(10, draw.integers(*DIGITS), p=chances / chances.sum()).tolist():
        scan = by_class[digit][draw.integers(len(by_class[digit]))]
        size = int(draw.integers(*SCAN_SIZES))
        ink = np.asarray(Image.fromarray(scan).resize((size, size), Image.Resampling.BILINEAR)) / 255
        top, left = draw.integers(0, SIZE - size, 2, endpoint=True).tolist()
        place = np.s_[top : top + size, left : left + size]
        level = draw.uniform(170, 250) if draw.random() < 0.7 else draw.uniform(0, 30)
        pixels[place] += ink * (level - pixels[place])
        mask[place][ink >= INK] = digit + 1
    pixels += draw.normal(0, 15, pixels.shape)
    return pixels.round().clip(0, 255).astype(np.uint8)[None], mask


def background(draw: np.random.Generator, size: int) -> Float[np.ndarray, "s s"]:
    """Clouds of several sizes."""
    total = np.full((size, size), draw.uniform(70, 130))
    for cells, strength in ((3, 25), (8, 15), (20, 10)):
        coarse = draw.normal(0, strength, (cells, cells)).astype(np.float32)
        total += np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
    return total
