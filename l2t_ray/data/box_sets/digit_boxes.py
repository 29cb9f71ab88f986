"""Real scanned digits pasted on canvases, with exact boxes: a set for detection that needs no file.

Digits from 0 to 4 lie beside one another on a textured, noisy background, in several sizes, brighter than it. Low ones
are frequent and high ones rare. No scan is in two of the parts. A small detector learns to find them in a minute, and
to tell them apart less well: with ten classes, or digits that are dark as often as bright, it does not in that time.
"""

import numpy as np
from jaxtyping import UInt8

from l2t_ray.data.boxed_sets import BoxedDataset, BoxedSet, Boxes
from l2t_ray.data.dataset import pixel_statistics
from l2t_ray.data.pasted_digits import INK, background, drawn_digits, made_of_digits

CLASSES = tuple(map(str, range(5)))
SIZE = 96
DIGITS = (3, 8)
"""A canvas has from so many digits to so many, the latter not included; fewer where there is no room."""
SCAN_SIZES = (18, 41)
"""Heights and widths of scans, in pixels."""
INK_LEVELS = (170, 250)
"""Of full ink, in grey levels; the background is about 100."""
TRIES = 20
"""Places that are tried for a digit before it is left out."""


def open_digit_boxes(*, num_train: int = 400, num_validation: int = 100, num_test: int = 200) -> BoxedDataset:
    """Canvases of 96 x 96 pixels in three parts; the same on every machine.

    Args:
        num_train, num_validation, num_test: canvases in each part; without any for validation, they are to be chosen.

    Raises:
        UserError: if there would be no canvas to train or to test on.
    """
    numbers = {"train": num_train, "validation": num_validation, "test": num_test}
    made = made_of_digits(numbers, _canvas, parts="digit-boxes-parts", each="digit-canvas")
    train = [*made["train"], *made["validation"]]
    mean, std = pixel_statistics(np.stack([image for image, _ in made["train"]]))
    apart = np.arange(num_train, len(train)) if num_validation else None
    return BoxedDataset("digit_boxes", _set(train), _set(made["test"]), mean, std, apart)


def _set(pairs: list[tuple[np.ndarray, Boxes]]) -> BoxedSet:
    return BoxedSet.of([image for image, _ in pairs], [boxes for _, boxes in pairs], CLASSES)


def _canvas(
    by_class: list[UInt8[np.ndarray, "_ 8 8"]], draw: np.random.Generator
) -> tuple[UInt8[np.ndarray, "3 s s"], Boxes]:
    pixels, is_taken = background(draw, SIZE), np.zeros((SIZE, SIZE), dtype=bool)
    corners, labels = [], []
    for digit, ink in drawn_digits(by_class, draw, DIGITS, SCAN_SIZES, classes=len(CLASSES)):
        size, level = len(ink), draw.uniform(*INK_LEVELS)
        for top, left in draw.integers(0, SIZE - size, (TRIES, 2), endpoint=True).tolist():
            place = np.s_[top : top + size, left : left + size]
            if is_taken[place].any():
                continue
            pixels[place] += ink * (level - pixels[place])
            is_taken[place] = True
            rows, columns = (np.flatnonzero((ink >= INK).any(axis=axis)) for axis in (1, 0))
            corners.append([left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1])
            labels.append(digit)
            break
    pixels += draw.normal(0, 15, pixels.shape)
    grey = pixels.round().clip(0, 255).astype(np.uint8)
    return np.repeat(grey[None], 3, axis=0), Boxes.of(corners, labels)
