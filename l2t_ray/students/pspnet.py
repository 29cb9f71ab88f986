"""Pyramid scene parsing networks (Zhao et al., CVPR 2017), in widths from two CPU cores up.

A ResNet-like encoder at an eighth or a quarter of the image's size; its features beside their means over grids of 1, 2,
3 and 6 windows a side; a prediction for each pixel, enlarged to the image's size; and an auxiliary prediction from an
earlier stage, in training alone.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from l2t_ray.interfaces import UserError
from l2t_ray.students.resnet import Block, ConvNorm, Norm

BINS = (1, 2, 3, 6)
"""Windows a side of each grid (paper)."""


class PSPNet(nn.Module):
    """Logits `[n, c, h, w]` of images `[n, d, h, w]`; in training mode a pair, those and the auxiliary head's.

    Pooling and enlarging are products with constant matrices: on GPUs as well the same numbers each time, and twice
    differentiable by every engine.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        width: int = 16,
        blocks: int = 1,
        stride: int = 4,
        norm: Norm = "batch",
        auxiliary: bool = True,
    ):
        """
        Args:
            num_classes: c.
            in_channels: d.
            width: channels of the first stage; the others have twice and four times as many (16: 0.1 M weights).
            blocks: residual blocks of each stage.
            stride: side of the square of pixels that a feature stands for, 4 or 8.
            norm: as in the ResNets here.
            auxiliary: give the second prediction in training.

        Raises:
            UserError: if the stride is another number.
        """
        super().__init__()
        if stride not in (4, 8):
            raise UserError(f"student.stride must be 4 or 8, got {stride}.")
        widths = (width, 2 * width, 4 * width)
        self.stem = ConvNorm(in_channels, width, 3, 2, norm, relu=True)
        self.first = _stage(width, widths[0], blocks, norm, stride=stride // 4)
        self.second = _stage(widths[0], widths[1], blocks, norm, stride=2)
        self.third = _stage(widths[1], widths[2], blocks, norm, dilation=2)
        each = max(1, widths[2] // len(BINS))
        # Without a norm: of the mean over a whole image there is one value a channel.
        self.pyramid = nn.ModuleList(nn.Conv2d(widths[2], each, 1) for _ in BINS)
        self.bottleneck = ConvNorm(widths[2] + each * len(BINS), widths[1], 3, 1, norm, relu=True)
        self.classify = nn.Conv2d(widths[1], num_classes, 1)
        self.auxiliary = nn.Conv2d(widths[1], num_classes, 1) if auxiliary else None

    def forward(
        self, images: Float[Tensor, "n d h w"]
    ) -> Float[Tensor, "n c h w"] | tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
        size = images.shape[2:]
        earlier = self.second(self.first(self.stem(images)))
        features = self.third(earlier)
        context = [
            enlarged(F.relu(reduce(grid_means(features, side))), features.shape[2:])
            for side, reduce in zip(BINS, self.pyramid, strict=True)
        ]
        logits = self.classify(self.bottleneck(torch.cat([features, *context], dim=1)))
        if self.auxiliary is None or not self.training:
            return enlarged(logits, size)
        return enlarged(logits, size), enlarged(self.auxiliary(earlier), size)


def pspnet(
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    width: int = 16,
    blocks: int = 1,
    stride: Literal[4, 8] = 4,
    norm: Norm = "batch",
    auxiliary: bool = True,
) -> PSPNet:
    """See `PSPNet`. Images may be of any size."""
    del image_size
    return PSPNet(
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        blocks=blocks,
        stride=stride,
        norm=norm,
        auxiliary=auxiliary,
    )


def _stage(
    channels_in: int, channels: int, blocks: int, norm: Norm, *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    first = Block(channels_in, channels, stride, norm, dilation=dilation)
    return nn.Sequential(first, *(Block(channels, channels, 1, norm, dilation=dilation) for _ in range(blocks - 1)))


def grid_means(maps: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n c side side"]:
    """Means over side x side windows, which overlap by a row where the map does not divide (adaptive pooling)."""
    rows, columns = (_windows(size, side).to(maps) for size in maps.shape[2:])
    return rows @ maps @ columns.t()


def enlarged(maps: Float[Tensor, "n c h w"], size: torch.Size) -> Float[Tensor, "n c i j"]:
    """Bilinear, corners not aligned (`torch.nn.functional.interpolate`)."""
    rows, columns = (_between(old, new).to(maps) for old, new in zip(maps.shape[2:], size, strict=True))
    return rows @ maps @ columns.t()


def _windows(size: int, side: int) -> Float[Tensor, "side size"]:
    places = torch.arange(size)
    starts = torch.arange(side)[:, None] * size // side
    ends = -(-(torch.arange(side)[:, None] + 1) * size // side)
    inside = ((places >= starts) & (places < ends)).double()
    return inside / inside.sum(dim=1, keepdim=True)


def _between(old: int, new: int) -> Float[Tensor, "new old"]:
    """Each new row's two neighbours among the old ones, by nearness."""
    places = ((torch.arange(new, dtype=torch.float64) + 0.5) * old / new - 0.5).clamp(min=0)
    below = places.floor().long().clamp(max=old - 1)
    above = (below + 1).clamp(max=old - 1)
    share = (places - below)[:, None]
    return F.one_hot(below, old) * (1 - share) + F.one_hot(above, old) * share
