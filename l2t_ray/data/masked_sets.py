"""What every set of images with masks is once it is open, whatever it was read from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import numpy as np
from jaxtyping import Int

from l2t_ray.data.dataset import OpenedSet
from l2t_ray.data.mask_transforms import Window, windowed
from l2t_ray.interfaces import UserError

IN_MEMORY = 2 << 30
"""Bytes of pixels and masks up to which a set is kept in memory, in each process."""
LEAST_SIDE = 8
"""Pixels that a shrunk image has at least in height and width."""

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

    def shrunk(self, factor: int) -> "MaskedSet":
        """The same images at so many times less height and width: pixels are averaged, masks take the nearest pixel.
        In memory, where they fit.

        Raises:
            UserError: if too little of an image would be left.
        """
        sizes = np.maximum(1, (self.sizes / factor).round().astype(np.int64))
        if len(sizes) and sizes.min() < LEAST_SIDE:
            row = int(sizes.min(axis=1).argmin())
            raise UserError(
                f"data.masks.shrink={factor} leaves {sizes[row, 1]}x{sizes[row, 0]} pixels of {self.names[row]}, which "
                f"has {self.sizes[row, 1]}x{self.sizes[row, 0]}, and at least {LEAST_SIDE}x{LEAST_SIDE} must be left; "
                "lower it."
            )
        pairs: Sequence[Pair] = _ShrunkPairs(self.pairs, sizes, self.ignore)
        if len(sizes) and 4 * sizes.prod(axis=1).sum() <= IN_MEMORY:
            pairs = list(pairs)
        content = None if self.content is None else f"{self.content} shrunk by {factor}"
        return replace(self, pairs=pairs, sizes=sizes, content=content)


class _ShrunkPairs(Sequence[Pair]):
    """Pairs that are shrunk each time they are asked for."""

    def __init__(self, pairs: Sequence[Pair], sizes: Int[np.ndarray, "n 2"], ignore: int):
        self._pairs, self._sizes, self._ignore = pairs, sizes, ignore

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, row: int) -> Pair: ...
    @overload
    def __getitem__(self, row: slice) -> "_ShrunkPairs": ...
    def __getitem__(self, row: int | slice) -> "Pair | _ShrunkPairs":
        if isinstance(row, slice):
            return _ShrunkPairs(self._pairs[row], self._sizes[row], self._ignore)
        image, mask = self._pairs[row]
        height, width = self._sizes[row].tolist()
        pixels, classes = windowed(
            image, mask, Window(0, 0, *mask.shape), (height, width), fill=[0.0] * len(image), ignore=self._ignore
        )
        return pixels.numpy(), classes.numpy()


@dataclass(frozen=True)
class MaskedDataset(OpenedSet):
    """Images with a class for each pixel."""

    train: MaskedSet
    test: MaskedSet

    def shrunk(self, factor: int) -> "MaskedDataset":
        """Both parts `MaskedSet.shrunk`; the statistics stay those of the full size."""
        return replace(self, train=self.train.shrunk(factor), test=self.test.shrunk(factor))
