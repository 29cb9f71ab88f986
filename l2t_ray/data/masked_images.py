"""Minibatches of crops of images with a class for each pixel."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer, UInt8
from torch import Tensor

from l2t_ray.data.augment import normalise
from l2t_ray.data.examples import Draws
from l2t_ray.data.mask_transforms import Window, chosen_pixels, window_at, windowed
from l2t_ray.data.masked_sets import MaskedSet
from l2t_ray.data.placements import Augment, drawn_placements
from l2t_ray.interfaces import UserError

_LOG = logging.getLogger(__name__)
_PIXELS_AT_ONCE = 1 << 20


class MaskedImages:
    """Serves crops of images and masks (the `Examples` protocol): random scale, place and flip, and chosen pixels.

    What is drawn is one crop for each example of a minibatch. Inputs are float32 `[n, c, crop, crop]`; targets are a
    mapping of `mask` int64 `[n, crop, crop]` and `chosen` int64 `[n, pixels]`, places (row-major) of pixels that count,
    -1 for none. Batches without draws have whole images, filled up to `MaskedSet.frame` with pixels that do not count,
    and the masks alone for targets.

    Args:
        images: the set.
        mean, std: by which pixels in 0..1 are normalised, one a channel.
        crop: height and width of the crops, in pixels.
        augment: `crop_flip`: scale, place and flip are drawn; `crop`: scale and place alone; `flip`: crops are from
            the middle at the images' own scale; `none`: and not mirrored.
        scale: the least and the largest factor by which images are enlarged before they are cropped.
        pixels: how many pixels of each crop are trained on; None: all that count, and targets are masks alone.

    Raises:
        UserError: if more pixels are asked for than a crop has.
    """

    extreme_rows: Sequence[int] = ()

    def __init__(
        self,
        images: MaskedSet,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        crop: int,
        augment: Augment = "crop_flip",
        scale: tuple[float, float] = (1.0, 1.0),
        pixels: int | None = None,
    ):
        if pixels is not None and pixels > crop * crop:
            raise UserError(
                f"data.masks.pixels={pixels} is more than the {crop * crop} pixels of a crop of "
                f"data.masks.crop={crop}; lower it, or leave it out to train on all pixels."
            )
        self._images, self._mean, self._std = images, mean, std
        self._crop, self._scale, self._pixels = crop, scale, pixels
        self._augment: Augment = augment
        self._has_told = False
        self._fill = [float(round(255 * value)) for value in mean]

    def __len__(self) -> int:
        return len(self._images)

    @property
    def at_once(self) -> int:
        """How many whole images are evaluated together."""
        height, width = self._images.frame
        return max(1, _PIXELS_AT_ONCE // (height * width))

    def draws(
        self, generator: np.random.Generator, size: int
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n 2"], Bool[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Scales, places, flips, and seeds of the choice of pixels."""
        placements = drawn_placements(generator, size, self._augment, self._scale)
        return *placements, generator.integers(0, 2**63 - 1, size)

    def batch(
        self, rows: Int[np.ndarray, " n"], draws: Draws, device: torch.device
    ) -> tuple[Tensor, Tensor | dict[str, Tensor]]:
        if not draws:
            pixels, masks = self._stacked([self._whole(row) for row in rows.tolist()])
            return self._normalised(pixels, device), masks.to(device)
        scales, places, flips, seeds = (values.tolist() for values in draws)
        pixels, masks = self._stacked(
            [self._cut(*drawn) for drawn in zip(rows.tolist(), scales, places, flips, strict=True)]
        )
        inputs, on_device = self._normalised(pixels, device), masks.to(device)
        if self._pixels is None:
            return inputs, on_device
        ignore = self._images.ignore
        chosen = [
            chosen_pixels(mask, self._pixels, ignore=ignore, seed=seed) for mask, seed in zip(masks, seeds, strict=True)
        ]
        return inputs, {"mask": on_device, "chosen": torch.stack(chosen).to(device)}

    def _cut(self, row: int, scale: float, place: Sequence[float], is_flipped: bool) -> tuple[Tensor, Tensor]:
        image, mask = self._images.pairs[row]
        window = window_at(*mask.shape, crop=self._crop, scale=scale, place=(place[0], place[1]), is_flipped=is_flipped)
        pixels, classes = self._shown(image, mask, window, (self._crop, self._crop))
        if not bool((classes != self._images.ignore).any()):
            self._tell(self._images.names[row])
        return pixels, classes

    def _tell(self, name: str) -> None:
        """The first time alone: such crops are rare or many."""
        if not self._has_told:
            self._has_told = True
            _LOG.warning("a crop of %s has only pixels that are ignored: it teaches nothing in its step.", name)

    def _whole(self, row: int) -> tuple[Tensor, Tensor]:
        image, mask = self._images.pairs[row]
        return self._shown(image, mask, Window(0, 0, *self._images.frame), self._images.frame)

    def _shown(
        self, image: UInt8[np.ndarray, "c h w"], mask: Integer[np.ndarray, "h w"], window: Window, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        return windowed(image, mask, window, size, fill=self._fill, ignore=self._images.ignore)

    def _stacked(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        images, masks = zip(*pairs, strict=True)
        return torch.stack(images), torch.stack(masks).long()

    def _normalised(self, pixels: UInt8[Tensor, "n c h w"], device: torch.device) -> Float[Tensor, "n c h w"]:
        return normalise(pixels.to(device, non_blocking=True), self._mean, self._std)
