"""YOLO-v3 (Redmon and Farhadi, 2018) with its Darknet-53, and its tiny form, in widths from two CPU cores up.

A detector of one stage: at each of two or three strides and each cell of that grid, a prediction for every anchor: four
offsets of a box, whether there is one, and a score for each class.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from l2t_ray.interfaces import UserError
from l2t_ray.students.anchors import KMEANS, PUBLISHED, Anchor, by_scale
from l2t_ray.students.resnet import ConvNorm, Norm
from l2t_ray.students.sizes import Ratio

Depth = Literal["darknet53", "tiny"]

STRIDES = {"darknet53": (8, 16, 32), "tiny": (16, 32)}
_STAGES = ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))
"""Channels and residual blocks of Darknet-53, each behind a convolution of stride 2."""
_HEADS = {"darknet53": ((1024, 5, 256), (512, 5, 128), (256, 5, None)), "tiny": ((512, 0, 128), (256, 0, None))}
"""The arguments of each scale's head, coarsest first."""


class ConvLeaky(ConvNorm):
    """A convolution, its norm and a leaky ReLU of slope 0.1."""

    def __init__(self, channels_in: int, channels: int, size: int, norm: Norm, stride: int = 1):
        super().__init__(channels_in, channels, size, stride, norm, relu=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        return F.leaky_relu(super().forward(x), 0.1, inplace=True)


class Residual(nn.Module):
    """Fewer channels by 1x1, all of them by 3x3, and what came in."""

    def __init__(self, channels: int, fewer: int, norm: Norm):
        super().__init__()
        self.first = ConvLeaky(channels, fewer, 1, norm)
        self.second = ConvLeaky(fewer, channels, 3, norm)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return x + self.second(self.first(x))


class _Darknet53(nn.Module):
    """Maps at a quarter, a half and all of the largest stride, finest first."""

    def __init__(self, in_channels: int, width: float, norm: Norm, *, halved: bool):
        super().__init__()
        channels = scaled(32, width)
        self.stem = ConvLeaky(in_channels, channels, 3, norm)
        self.stages, self.channels = nn.ModuleList(), []
        for number, (full, blocks) in enumerate(_STAGES):
            fewer, wider = scaled(full // 2, width), scaled(full, width)
            stride = 1 if halved and number == 0 else 2
            down = ConvLeaky(channels, wider, 3, norm, stride)
            self.stages.append(nn.Sequential(down, *(Residual(wider, fewer, norm) for _ in range(blocks))))
            channels = wider
            self.channels.append(channels)
        self.channels = self.channels[-3:]

    def forward(self, x: Float[Tensor, "n c h w"]) -> list[Tensor]:
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[-3:]


class _TinyBody(nn.Module):
    """Maps at half and all of the largest stride, finest first."""

    def __init__(self, in_channels: int, width: float, norm: Norm, *, halved: bool):
        super().__init__()
        widths = [scaled(full, width) for full in (16, 32, 64, 128, 256, 512, 1024)]
        pairs = zip([in_channels, *widths], widths, strict=False)
        self.layers = nn.ModuleList(ConvLeaky(before, after, 3, norm) for before, after in pairs)
        self.reduce = ConvLeaky(widths[-1], scaled(256, width), 1, norm)
        self.channels, self._halved = [widths[4], scaled(256, width)], halved

    def forward(self, x: Float[Tensor, "n c h w"]) -> list[Tensor]:
        fine = x
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number == 4:
                fine = x
            if number < 5 and not (self._halved and number == 0):
                x = F.max_pool2d(x, 2, 2)
            elif number == 5:
                x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 2, 1)
        return [fine, self.reduce(x)]


class _Head(nn.Module):
    """The predictions of one scale, and what the next finer one gets of it.

    Args:
        num_convs: convolutions before the way to the finer scale leaves, 1x1 and 3x3 in turn.
        full: channels of the 3x3 ones at width 1.
        passed: channels of the way to the finer scale; None: there is none.
    """

    def __init__(
        self,
        channels_in: int,
        full: int,
        num_convs: int,
        passed: int | None,
        num_outputs: int,
        width: float,
        norm: Norm,
    ):
        super().__init__()
        narrow, wide, convs = scaled(full // 2, width), scaled(full, width), []
        for number in range(num_convs):
            size, channels = (3, wide) if number % 2 else (1, narrow)
            convs.append(ConvLeaky(channels_in, channels, size, norm))
            channels_in = channels
        self.convs = nn.Sequential(*convs)
        self.before = ConvLeaky(channels_in, wide, 3, norm)
        self.predict = nn.Conv2d(wide, num_outputs, 1)
        self.pass_on = None if passed is None else ConvLeaky(channels_in, scaled(passed, width), 1, norm)

    def forward(self, x: Float[Tensor, "n c h w"]) -> tuple[Tensor, Tensor | None]:
        x = self.convs(x)
        passed = None if self.pass_on is None else upsampled(self.pass_on(x))
        return self.predict(self.before(x)), passed


class Yolo(nn.Module):
    """Of images `[n, d, h, w]`, sides multiples of the largest stride, raw predictions `[n, a, gh, gw, 5 + c]` by
    scale, finest first: t_x, t_y, t_w, t_h, the logit of there being an object, and the classes' logits.

    Attributes:
        strides: pixels a cell of each scale.
        anchors: (width, height) in pixels by scale.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        depth: Depth = "darknet53",
        width: float = 1.0,
        anchors: Sequence[Anchor] = (),
        halved: bool = False,
        norm: Norm = "batch",
    ):
        """
        Args:
            num_classes: c.
            in_channels: d.
            depth: `darknet53` has strides 8, 16 and 32, `tiny` 16 and 32.
            width: times the published number of channels, rounded to eights, at least 8.
            anchors: as many for each scale, small ones first; none: the published ones, for images of 416 pixels.
            halved: the first halving of the image is left out, so that strides are half as large: for small images.
            norm: as in the ResNets here.

        Raises:
            UserError: if there is no such network.
        """
        super().__init__()
        if not 0 < width < math.inf:
            raise UserError(f"student.width must be a number above 0, got {width}.")
        self.strides = tuple(stride // 2 if halved else stride for stride in STRIDES[depth])
        self.anchors = by_scale(anchors or PUBLISHED[depth], len(self.strides))
        self._num_outputs = 5 + num_classes
        body = _Darknet53 if depth == "darknet53" else _TinyBody
        self.body = body(in_channels, width, norm, halved=halved)
        outputs, extra, coarsest_first = len(self.anchors[0]) * self._num_outputs, 0, []
        for channels, (full, num_convs, passed) in zip(self.body.channels[::-1], _HEADS[depth], strict=True):
            coarsest_first.append(_Head(channels + extra, full, num_convs, passed, outputs, width, norm))
            extra = 0 if passed is None else scaled(passed, width)
        self.heads = nn.ModuleList(coarsest_first)

    def forward(self, images: Float[Tensor, "n d h w"]) -> tuple[Float[Tensor, "n a gh gw k"], ...]:
        """
        Raises:
            UserError: if the sides are no multiples of the largest stride.
        """
        largest, sides = self.strides[-1], images.shape[2:]
        if any(side % largest for side in sides):
            raise UserError(
                f"images of {sides[0]}x{sides[1]} pixels do not divide into cells of {largest}; take sides that are "
                f"multiples of {largest}."
            )
        predictions, passed = [], None
        for head, maps in zip(self.heads, reversed(self.body(images)), strict=True):
            raw, passed = head(maps if passed is None else torch.cat((passed, maps), dim=1))
            predictions.append(raw.unflatten(1, (-1, self._num_outputs)).permute(0, 1, 3, 4, 2))
        return tuple(reversed(predictions))


def yolo(
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    depth: Depth = "tiny",
    width: Ratio = 1.0,
    anchors: tuple[tuple[Ratio, Ratio], ...] | Literal["kmeans"] = (),
    halved: bool = False,
    norm: Norm = "batch",
) -> Yolo:
    """See `Yolo`. Images may be of any size whose sides the largest stride divides. `kmeans` stands for anchors that a
    job takes from its data (`assembly/anchor_sizes.py`).

    Raises:
        UserError: if it is made with `kmeans`, where no data say which anchors these are.
    """
    del image_size
    if anchors == KMEANS:
        raise UserError(f"student.anchors={KMEANS} is for jobs, which have boxes to take them from; give sizes.")
    return Yolo(
        num_classes=num_classes,
        in_channels=in_channels,
        depth=depth,
        width=width,
        anchors=anchors,
        halved=halved,
        norm=norm,
    )


def scaled(channels: int, width: float) -> int:
    """So many channels at a width: a multiple of eight, as group normalisation needs it."""
    return max(8, 8 * round(channels * width / 8))


def upsampled(maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c i j"]:
    """Each value four times, in a square. Its derivative is a sum in a fixed order on GPUs as well."""
    n, c, h, w = maps.shape
    return maps[:, :, :, None, :, None].expand(n, c, h, 2, w, 2).reshape(n, c, 2 * h, 2 * w)
