"""What every set of images with masks is once it is open, whatever it was read from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int

from l2t_ray.data.dataset import OpenedSet

Pair = tuple[np.ndarray, np.ndarray]
"""An image, uint8 `[c, h, w]`, and the class number of each of its pixels, whole numbers `[h, w]`."""


@dataclass(frozen=True)
class MaskedSet:
    """Images and masks, of any sizes: arrays in memory, or read from files when they are asked for."""

    pairs: Sequence[Pair]
    sizes: Int[np.ndarray, "n 2"]
    """Height and width of each."""
    class_names: tuple[str, ...]
    ignore: int
    """The number of pixels that do not count."""
    names: Sequence[str]
    """Of the images, for messages."""
    content: str | None = None
    """Tells the content of files from any other; None: the pixels themselves do."""

    @classmethod
    def of(cls, pairs: Sequence[Pair], class_names: Sequence[str], *, ignore: int = 255) -> "MaskedSet":
        """Of arrays in memory."""
        sizes = np.array([mask.shape for _, mask in pairs], dtype=np.int64).reshape(len(pairs), 2)
        return cls(pairs, sizes, tuple(class_names), ignore, [f"image {row}" for row in range(len(pairs))])

    def __len__(self) -> int:
        return len(self.sizes)

    def digest(self) -> str:
        """Tells this set from any other."""
        total = hashlib.sha256(repr((self.class_names, self.ignore, self.content)).encode())
        if self.content is None:
            for image, mask in self.pairs:
                total.update(repr((image.shape, mask.dtype.str)).encode())
                total.update(np.ascontiguousarray(image).data)
                total.update(np.ascontiguousarray(mask).data)
        return total.hexdigest()

    @cached_property
    def frame(self) -> tuple[int, int]:
        """The least size that all images fit into: whole ones are filled up to it, on any number of workers."""
        height, width = self.sizes.max(axis=0).tolist()
        return height, width

    @property
    def height(self) -> int:
        """Of the largest image."""
        return self.frame[0]


@dataclass(frozen=True)
class MaskedDataset(OpenedSet):
    """Images with a class for each pixel."""

    train: MaskedSet
    test: MaskedSet
