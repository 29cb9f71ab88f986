"""An image and its mask under one transform: what is cropped, enlarged or mirrored in one is so in the other."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Integer, UInt8
from torch import Tensor

from l2t_ray.data.placements import start_of
from l2t_ray.extras import needed_by


class Window(NamedTuple):
    """Which part of an image is shown. It may reach beyond the image; `is_flipped`: mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    is_flipped: bool = False


def window_at(
    height: int, width: int, *, crop: int, scale: float, place: tuple[float, float], is_flipped: bool
) -> Window:
    """The part of a `height` x `width` image that becomes a `crop` x `crop` one when it is enlarged by `scale`.

    Args:
        place: where it lies, each in [0, 1): at the top, and at the left end of what is free to choose. An image that
            is smaller than the window lies there within the window.
    """
    size = max(1, round(crop / scale))
    top, left = start_of(place[0], height - size), start_of(place[1], width - size)
    return Window(top, left, size, size, is_flipped)


def windowed(
    image: UInt8[np.ndarray, "c h w"],
    mask: Integer[np.ndarray, "h w"],
    window: Window,
    size: tuple[int, int],
    *,
    fill: list[float],
    ignore: int,
) -> tuple[UInt8[Tensor, "c s t"], Integer[Tensor, "s t"]]:
    """The window of both, at `size`. Images are averaged where they change size, masks take the nearest pixel.

    Args:
        fill: what is seen beyond the image, one value a channel; masks have `ignore` there.
    """
    # torchvision takes seconds to import, and images with labels do without it.
    with needed_by("an image with a mask"):
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F
        from torchvision.tv_tensors import Image, Mask

    height, width = mask.shape
    if mask.dtype != np.uint8 or not 0 <= ignore <= 255:
        mask = mask.astype(np.int64)  # which holds every `ignore`
    top, left = max(window.top, 0), max(window.left, 0)
    bottom, right = min(window.top + window.height, height), min(window.left + window.width, width)
    both = (
        Image(torch.from_numpy(image[:, top:bottom, left:right].copy())),
        Mask(torch.from_numpy(mask[top:bottom, left:right].copy())),
    )
    beyond = [
        left - window.left,
        top - window.top,
        window.left + window.width - right,
        window.top + window.height - bottom,
    ]
    pixels, classes = both
    if any(beyond):
        pixels, classes = F.pad(pixels, beyond, fill=fill), F.pad(classes, beyond, fill=ignore)
    if (window.height, window.width) != size:
        pixels = F.resize(pixels, list(size), InterpolationMode.BILINEAR, antialias=True)
        # As a plain tensor: torchvision's nearest pixel of a `Mask` lies up to half a pixel beside that of the image.
        plain = classes.as_subclass(Tensor)[None]
        classes = F.resize(plain, list(size), InterpolationMode.NEAREST_EXACT, antialias=False)[0]
    if window.is_flipped:
        pixels, classes = F.horizontal_flip(pixels), F.horizontal_flip(classes)
    return pixels.as_subclass(Tensor), classes.as_subclass(Tensor)


def chosen_pixels(mask: Integer[Tensor, "h w"], count: int, *, ignore: int, seed: int) -> Int[Tensor, " m"]:
    """`count` places (row-major) drawn without replacement among the pixels that count; -1 where there are fewer."""
    places = np.flatnonzero(mask.flatten().numpy() != ignore)
    generator = np.random.Generator(np.random.PCG64(seed))
    chosen = places[generator.choice(len(places), min(count, len(places)), replace=False, shuffle=False)]
    return torch.from_numpy(np.concatenate((chosen, np.full(count - len(chosen), -1))).astype(np.int64))
