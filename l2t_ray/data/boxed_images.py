"""Minibatches of letterboxed images with boxes."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from l2t_ray.data.augment import normalise
from l2t_ray.data.box_transforms import letterbox, moved_boxes, placed
from l2t_ray.data.boxed_sets import BoxedSet, Boxes
from l2t_ray.data.examples import Draws
from l2t_ray.data.placements import Augment, drawn_placements

NO_BOX = -1
"""The label of places that are filled up."""
_PIXELS_AT_ONCE = 1 << 21


class BoxedImages:
    """Serves images and boxes in a frame of one size (the `Examples` protocol), letterboxed, moved and mirrored.

    Inputs are float32 `[n, c, *frame]`. Targets are a mapping of `boxes` float32 `[n, m, 4]` (x1, y1, x2, y2 in pixels
    of the input), `labels` int64 `[n, m]` (`NO_BOX`: there is none), `crowd` bool `[n, m]` and `image` int64 `[n]`, its
    row in the set; m is `BoxedSet.most`. Batches without draws have whole images in the middle of the frame.

    Args:
        images: the set.
        mean, std: by which pixels in 0..1 are normalised, one a channel.
        frame: height and width of the inputs.
        augment: `crop_flip`: scale, place and flip are drawn; `crop`: scale and place; `flip`: the flip; `none`:
            nothing.
        scale: the least and the largest factor by which images are enlarged beyond the letterbox.
        boxes: other boxes than the set's own, for each image no more of them.
    """

    extreme_rows: Sequence[int] = ()

    def __init__(
        self,
        images: BoxedSet,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        frame: tuple[int, int],
        augment: Augment = "crop_flip",
        scale: tuple[float, float] = (1.0, 1.0),
        boxes: Sequence[Boxes] | None = None,
    ):
        self._images, self._mean, self._std = images, mean, std
        self._frame, self._scale = frame, scale
        self._augment: Augment = augment
        self._boxes = images.boxes if boxes is None else boxes
        self._fill = [float(round(255 * value)) for value in mean]

    def __len__(self) -> int:
        return len(self._images)

    @property
    def at_once(self) -> int:
        """How many images are evaluated together."""
        return max(1, _PIXELS_AT_ONCE // (self._frame[0] * self._frame[1]))

    def draws(
        self, generator: np.random.Generator, size: int
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
        """Scales, places and flips."""
        return drawn_placements(generator, size, self._augment, self._scale)

    def batch(
        self, rows: Int[np.ndarray, " n"], draws: Draws, device: torch.device
    ) -> tuple[Tensor, dict[str, Tensor]]:
        count, most = len(rows), self._images.most
        if not draws:
            draws = np.ones(count), np.full((count, 2), 0.5), np.zeros(count, dtype=bool)
        pixels = []
        boxes = np.zeros((count, most, 4), dtype=np.float32)
        labels, crowd = np.full((count, most), NO_BOX), np.zeros((count, most), dtype=bool)
        drawn = zip(rows.tolist(), *(values.tolist() for values in draws), strict=True)
        for i, (row, scale, place, is_flipped) in enumerate(drawn):
            height, width = self._images.sizes[row].tolist()
            where = letterbox(height, width, self._frame, scale=scale, place=tuple(place), is_flipped=is_flipped)
            pixels.append(placed(self._images.images[row], where, fill=self._fill))
            seen = moved_boxes(self._boxes[row], where)
            number = len(seen.labels)
            boxes[i, :number], labels[i, :number], crowd[i, :number] = seen
        targets = {"boxes": boxes, "labels": labels, "crowd": crowd, "image": rows.astype(np.int64)}
        inputs = normalise(torch.stack(pixels).to(device, non_blocking=True), self._mean, self._std)
        return inputs, {name: torch.from_numpy(values).to(device) for name, values in targets.items()}
