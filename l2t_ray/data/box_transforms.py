"""An image and its boxes under one transform: what is enlarged, moved or mirrored in one is so in the other."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from l2t_ray.data.boxed_sets import Boxes
from l2t_ray.data.placements import start_of
from l2t_ray.extras import needed_by

LEAST_SEEN = 0.25
"""Share of a box's area. Of which less is seen in a crop is marked as a crowd: neither an object nor background."""


class Placement(NamedTuple):
    """Where an image comes to lie in a frame: enlarged to `height` x `width`, with its upper left corner at `top`,
    `left` (negative: beyond the frame), then mirrored with the frame."""

    stored: tuple[int, int]
    """Height and width of the image as it is stored."""
    frame: tuple[int, int]
    height: int
    width: int
    top: int
    left: int
    is_flipped: bool = False

    def moved(self, corners: Float[np.ndarray, "k 4"]) -> Float[np.ndarray, "k 4"]:
        """Boxes in pixels of the frame, from pixels of the image."""
        x, y = corners[:, 0::2] * self._scales[1] + self.left, corners[:, 1::2] * self._scales[0] + self.top
        if self.is_flipped:
            x = self.frame[1] - x[:, ::-1]
        return np.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), axis=1)

    def back(self, corners: Float[np.ndarray, "k 4"]) -> Float[np.ndarray, "k 4"]:
        """Boxes in pixels of the image, from pixels of the frame."""
        x, y = corners[:, 0::2], corners[:, 1::2]
        if self.is_flipped:
            x = self.frame[1] - x[:, ::-1]
        x, y = (x - self.left) / self._scales[1], (y - self.top) / self._scales[0]
        return np.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), axis=1)

    @property
    def _scales(self) -> tuple[float, float]:
        return self.height / self.stored[0], self.width / self.stored[1]


def letterbox(
    height: int,
    width: int,
    frame: tuple[int, int],
    *,
    scale: float = 1.0,
    place: tuple[float, float] = (0.5, 0.5),
    is_flipped: bool = False,
) -> Placement:
    """How a `height` x `width` image fills a frame with its sides' proportions kept, up to whole pixels.

    Args:
        frame: height and width.
        scale: by which the image is enlarged further: above 1 it is cropped.
        place: where it lies, each in [0, 1), at the top and at the left end of what is free to choose.
    """
    factor = scale * min(frame[0] / height, frame[1] / width)
    size = max(1, round(height * factor)), max(1, round(width * factor))
    top, left = (start_of(place[axis], frame[axis] - size[axis]) for axis in (0, 1))
    return Placement((height, width), frame, *size, top, left, is_flipped)


def placed(image: UInt8[np.ndarray, "c h w"], where: Placement, *, fill: list[float]) -> UInt8[Tensor, "c s t"]:
    """The frame with the image in it, averaged where it changes size; `fill`, a value a channel, is seen beyond it."""
    # torchvision takes seconds to import, and images with labels do without it.
    with needed_by("an image with boxes"):
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F

    pixels = torch.from_numpy(image)
    if (where.height, where.width) != where.stored:
        pixels = F.resize(pixels, [where.height, where.width], InterpolationMode.BILINEAR, antialias=True)
    height, width = where.frame
    top, left = max(where.top, 0), max(where.left, 0)
    seen = pixels[:, max(-where.top, 0) :, max(-where.left, 0) :][:, : height - top, : width - left]
    shown = torch.tensor(fill).to(torch.uint8)[:, None, None].repeat(1, height, width)
    shown[:, top : top + seen.shape[1], left : left + seen.shape[2]] = seen
    return shown.flip(2) if where.is_flipped else shown


def moved_boxes(boxes: Boxes, where: Placement) -> Boxes:
    """Boxes in pixels of the frame, cut at its edges. What is not seen is left out; what is hardly seen
    (`LEAST_SEEN`) becomes a crowd."""
    whole = where.moved(boxes.corners)
    height, width = where.frame
    cut = np.clip(whole, 0, [width, height, width, height])
    sides, all_sides = cut[:, 2:] - cut[:, :2], whole[:, 2:] - whole[:, :2]
    is_hard = sides.prod(axis=1) < LEAST_SEEN * all_sides.prod(axis=1)
    return Boxes(cut, boxes.labels, boxes.crowd | is_hard).at(np.flatnonzero((sides > 0).all(axis=1)))
