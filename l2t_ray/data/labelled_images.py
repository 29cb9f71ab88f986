"""Images with one label each, augmented and normalised in one go."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from l2t_ray.data.augment import crop_and_flip, normalise
from l2t_ray.data.examples import Draws
from l2t_ray.data.placements import Augment
from l2t_ray.interfaces import UserError


class LabelledImages:
    """Serves float32 images and int64 class numbers (the `Examples` protocol).

    Args:
        images: pixels; an array that is mapped from a file is read where it is asked for alone.
        labels: one an image.
        mean, std: by which pixels in 0..1 are normalised, one a channel.
        augment: what is drawn for each image of a minibatch.
        padding, padding_mode: as in `crop_and_flip`.

    Raises:
        UserError: if the padding does not fit the images.
        ValueError: if there is not one label an image.
    """

    extreme_rows: Sequence[int] = ()

    def __init__(
        self,
        images: UInt8[np.ndarray, "n c h w"],
        labels: Int[np.ndarray, " n"],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Augment = "none",
        padding: int = 4,
        padding_mode: Literal["zero", "reflect"] = "zero",
    ):
        size = min(images.shape[2:])
        is_cropped = augment in ("crop", "crop_flip")
        if is_cropped and padding_mode == "reflect" and padding >= size:
            raise UserError(f"data.padding must be below the image size {size} to reflect, got {padding}.")
        if len(labels) != len(images):
            raise ValueError(f"There are {len(images)} images but {len(labels)} labels.")
        self._images, self._labels, self._mean, self._std = images, labels, mean, std
        self._augment: Augment = augment
        self._padding = padding if is_cropped else 0
        self._padding_mode: Literal["zero", "reflect"] = padding_mode

    def __len__(self) -> int:
        return len(self._labels)

    def draws(
        self, generator: np.random.Generator, size: int
    ) -> tuple[()] | tuple[Int[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
        """Window offsets and flips."""
        if self._augment == "none":
            return ()
        flips = generator.random(size) < 0.5
        if self._augment == "crop":
            flips = np.zeros(size, dtype=bool)
        if self._augment == "flip":
            return np.full((size, 2), self._padding), flips
        return generator.integers(0, 2 * self._padding, (size, 2), endpoint=True), flips

    def batch(self, rows: Int[np.ndarray, " n"], draws: Draws, device: torch.device) -> tuple[Tensor, Tensor]:
        def moved(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        pixels = moved(self._images[rows])
        if draws:
            offsets, flips = map(moved, draws)
            pixels = crop_and_flip(pixels, offsets, flips, padding=self._padding, mode=self._padding_mode)
        return normalise(pixels, self._mean, self._std), moved(self._labels[rows])
