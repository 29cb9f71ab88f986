"""What every data set is once it is open, whatever it was read from."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from l2t_ray.data.arrow import ImageSet

BLOCK = 1 << 22
"""Pixel values that are counted at a time (4 MiB)."""


@dataclass(frozen=True)
class OpenedSet:
    """A training and a test set, with the pixel statistics (per channel, pixels in 0..1) to normalise them by."""

    name: str
    train: Any
    test: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation: Int[np.ndarray, " v"] | None = None
    """Rows of `train` that are set apart as clean; None: they are to be chosen."""
    notes: tuple[str, ...] = ()
    """A sentence for each thing that was converted or left out on the way from the files to the images."""

    @property
    def num_classes(self) -> int:
        return len(self.train.class_names)

    @property
    def student_arguments(self) -> dict[str, Any]:
        """What a student is made for, as the function that makes it is given it; `image_size` is the height of the
        largest image."""
        return {"num_classes": self.num_classes, "in_channels": len(self.mean), "image_size": self.train.height}


@dataclass(frozen=True)
class Dataset(OpenedSet):
    """Images with one label each."""

    train: ImageSet
    test: ImageSet


def pixel_statistics(
    images: UInt8[np.ndarray, "n c h w"], *, block: int = BLOCK
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in 0..1.

    Each channel's 256 values are counted, `block` pixels at a time: the counts are exact, and take no memory to speak
    of whatever the number of images.
    """
    n, channels, height, width = images.shape
    counts = np.zeros((channels, 256), dtype=np.int64)
    rows = max(1, block // (height * width))
    for start in range(0, n, rows):
        counts += value_counts(images[start : start + rows].swapaxes(0, 1))
    return statistics_of_counts(counts)


def value_counts(images: UInt8[np.ndarray, "c ..."]) -> Int[np.ndarray, "c 256"]:
    """How often each channel has each of the 256 values."""
    return np.stack([np.bincount(channel.ravel(), minlength=256) for channel in images])


def statistics_of_counts(counts: Int[np.ndarray, "c 256"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, from how often it has each value."""
    values, total = np.arange(256), int(counts[0].sum())
    sums, squares = (counts @ values).tolist(), (counts @ values**2).tolist()
    # In whole numbers up to the last division: nothing is rounded before.
    variances = [
        (total * square - sum_ * sum_) / (total * 255) ** 2 for sum_, square in zip(sums, squares, strict=True)
    ]
    return tuple(sum_ / (total * 255) for sum_ in sums), tuple(math.sqrt(variance) for variance in variances)
