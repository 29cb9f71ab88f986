"""What every set of images with boxes is once it is open, whatever it was read from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from l2t_ray.data.dataset import OpenedSet


class Boxes(NamedTuple):
    """What is marked on one image."""

    corners: Float[np.ndarray, "k 4"]
    """float64 (x1, y1, x2, y2) in pixels of the image, within it, `x1 < x2` and `y1 < y2`: left and upper edge of the
    upper left pixel are 0."""
    labels: Int[np.ndarray, " k"]
    """Class numbers."""
    crowd: Bool[np.ndarray, " k"]
    """Whether a box is of a crowd, or too hard to count: neither an object to be found nor background."""

    @classmethod
    def of(
        cls,
        corners: Sequence[Any] | np.ndarray,
        labels: Sequence[Any] | np.ndarray,
        crowd: Sequence[Any] | np.ndarray | None = None,
    ) -> "Boxes":
        """Of any numbers; there may be no box."""
        return cls(
            np.asarray(corners, dtype=np.float64).reshape(-1, 4),
            np.asarray(labels, dtype=np.int64).reshape(-1),
            np.zeros(len(labels), dtype=bool) if crowd is None else np.asarray(crowd, dtype=bool).reshape(-1),
        )

    def at(self, rows: np.ndarray) -> "Boxes":
        """Those of these row numbers, or for which this is true."""
        return Boxes(self.corners[rows], self.labels[rows], self.crowd[rows])


class Clipped(NamedTuple):
    """Boxes within their image, and how many were cut or left out for it."""

    boxes: Boxes
    num_cut: int
    num_empty: int


def clipped(boxes: Boxes, height: int, width: int) -> Clipped:
    """Boxes cut at the edges of their image. Those of which nothing is left, or that had no area, are left out."""
    bounds = np.array([width, height, width, height], dtype=np.float64)
    corners = np.clip(boxes.corners, 0, bounds)
    has_area = (corners[:, 0] < corners[:, 2]) & (corners[:, 1] < corners[:, 3])
    is_cut = (corners != boxes.corners).any(axis=1) & has_area
    kept = Boxes(corners, boxes.labels, boxes.crowd).at(has_area)
    return Clipped(kept, int(is_cut.sum()), int((~has_area).sum()))


@dataclass(frozen=True)
class BoxedSet:
    """Images and boxes, of any sizes: arrays in memory, or read from files when they are asked for."""

    images: Sequence[np.ndarray]
    """uint8 `[c, h, w]`."""
    boxes: Sequence[Boxes]
    """Of each image; it may have none."""
    sizes: Int[np.ndarray, "n 2"]
    """Height and width of each."""
    class_names: tuple[str, ...]
    names: Sequence[str]
    """Of the images, for messages."""
    content: str | None = None
    """Tells the content of files from any other; None: the pixels themselves do."""

    @classmethod
    def of(cls, images: Sequence[np.ndarray], boxes: Sequence[Boxes], class_names: Sequence[str]) -> "BoxedSet":
        """Of arrays in memory."""
        sizes = np.array([image.shape[1:] for image in images], dtype=np.int64).reshape(len(images), 2)
        return cls(images, boxes, sizes, tuple(class_names), [f"image {row}" for row in range(len(images))])

    def __len__(self) -> int:
        return len(self.sizes)

    def digest(self) -> str:
        """Tells this set from any other."""
        total = hashlib.sha256(repr((self.class_names, self.sizes.tolist(), self.content)).encode())
        for corners, labels, crowd in self.boxes:
            total.update(repr(len(labels)).encode())
            for values in (corners, labels, crowd):
                total.update(np.ascontiguousarray(values).data)
        if self.content is None:
            for image in self.images:
                total.update(np.ascontiguousarray(image).data)
        return total.hexdigest()

    @cached_property
    def most(self) -> int:
        """The most boxes an image has, at least 1: minibatches of any images have room for as many."""
        return max(1, max((len(boxes.labels) for boxes in self.boxes), default=0))

    @property
    def height(self) -> int:
        """Of the largest image."""
        return int(self.sizes[:, 0].max())


@dataclass(frozen=True)
class BoxedDataset(OpenedSet):
    """Images with boxes, each of a class."""

    train: BoxedSet
    test: BoxedSet
