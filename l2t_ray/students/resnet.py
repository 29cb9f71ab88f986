"""CIFAR ResNets of depth 6n + 2 (He et al., CVPR 2016), narrow as published there or wide as L2T-DLN released them."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from l2t_ray.interfaces import UserError

Norm = Literal["batch", "group"]

NUM_GROUPS = 8
"""Groups of `norm="group"`: divides every width used here (16 ... 640) and leaves at least two channels a group."""

_WIDTHS = {"narrow": (16, 32, 64), "wide": (64, 128, 256)}


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Batch normalisation, or group normalisation, which knows neither other images nor the number of workers."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(NUM_GROUPS, channels)


def pool_to_grid(maps: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n c side side"]:
    """Means over a side x side grid of windows, which overlap by a row where the map does not divide (side <= 2).

    What adaptive pooling gives, but by plain average pooling: its backward pass is deterministic on GPUs as well.

    Raises:
        UserError: if the map is smaller than the grid.
    """
    sizes = maps.shape[2:]
    if min(sizes) < side:
        raise UserError(f"student: its last feature map of {sizes[0]}x{sizes[1]} is too small; use larger images.")
    windows = tuple(-(-size // side) for size in sizes)
    strides = tuple(size // side for size in sizes)
    return F.avg_pool2d(maps, windows, strides)


class ConvNorm(nn.Module):
    """A convolution and its norm: the unit of which engine `recompute` keeps the input alone."""

    is_recomputed = True

    def __init__(
        self, channels_in: int, channels: int, size: int, stride: int, norm: Norm, *, relu: bool, dilation: int = 1
    ):
        super().__init__()
        padding = dilation * (size // 2)
        self.conv = nn.Conv2d(channels_in, channels, size, stride, padding, dilation, bias=False)
        self.norm = norm_layer(norm, channels)
        self.relu = relu

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        # In place where nobody needs what was there: pieces freed in between leave gaps in memory that stay unused.
        y = self.norm(self.conv(x))
        return F.relu(y, inplace=True) if self.relu else y


class Block(nn.Module):
    """Two 3x3 convolutions, and what came in beside them."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        stride: int,
        norm: Norm,
        shortcut: Literal["conv", "pad"] = "conv",
        *,
        dilation: int = 1,
    ):
        super().__init__()
        self.first = ConvNorm(channels_in, channels, 3, stride, norm, relu=True, dilation=dilation)
        self.second = ConvNorm(channels, channels, 3, 1, norm, relu=False, dilation=dilation)
        self.stride = stride
        self.num_new = channels - channels_in
        self.shortcut = None
        if shortcut == "conv" and (stride > 1 or self.num_new):
            self.shortcut = ConvNorm(channels_in, channels, 1, stride, norm, relu=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        return F.relu(self.second(self.first(x)).add_(self._shortcut(x)), inplace=True)

    def _shortcut(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        if self.shortcut is not None:
            return self.shortcut(x)
        x = x[:, :, :: self.stride, :: self.stride]
        before = self.num_new // 2
        return F.pad(x, (0, 0, 0, 0, before, self.num_new - before)) if self.num_new else x


class ResNet(nn.Module):
    """Three stages of (depth - 2) / 6 blocks at full, half and quarter resolution, then one linear layer.

    Narrow nets end in global average pooling, 64 features (He et al.). Wide ones end, as the released L2T-DLN code
    does for 32x32 images, in a 2 x 2 grid of means, 1,024 features; other sizes get the same grid, from 5x5 up.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int,
        in_channels: int = 3,
        widths: Literal["narrow", "wide"] = "narrow",
        norm: Norm = "batch",
        shortcut: Literal["conv", "pad"] = "conv",
    ):
        """
        Args:
            depth: layers with weights, 6n + 2: 8, 20, 32, 44, 56, 110.
            num_classes: length of the logits.
            in_channels: 1 or 3, or any other number.
            widths: 16-32-64 or 64-128-256 channels.
            norm: `batch`, or `group` with 8 groups.
            shortcut: what joins stages: a 1x1 convolution with its norm, or zero channels (He et al.'s option A).

        Raises:
            UserError: if `depth` is not 6n + 2.
        """
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise UserError(f"student.depth must be 6n + 2 (8, 14, 20, 32, ...) for a ResNet, got {depth}.")
        channels = _WIDTHS[widths]
        self.stem = ConvNorm(in_channels, channels[0], 3, 1, norm, relu=True)
        blocks, channels_in = [], channels[0]
        for stage, width in enumerate(channels):
            for number in range((depth - 2) // 6):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(Block(channels_in, width, stride, norm, shortcut))
                channels_in = width
        self.blocks = nn.Sequential(*blocks)
        self.grid = 2 if widths == "wide" else 1
        self.linear = nn.Linear(channels_in * self.grid**2, num_classes)

    def forward(
        self, x: Float[Tensor, "n c h w"], with_embedding: bool = False
    ) -> Float[Tensor, "n k"] | tuple[Float[Tensor, "n k"], Float[Tensor, "n d"]]:
        """Logits, and with them the pooled features that the last layer reads."""
        x = x.contiguous(memory_format=torch.channels_last)  # convolutions take a quarter less time (docs/log.md)
        maps = self.blocks(self.stem(x))
        embedding = pool_to_grid(maps, self.grid).flatten(1)
        logits = self.linear(embedding)
        return (logits, embedding) if with_embedding else logits


def resnet(
    num_layers: int,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    widths: Literal["narrow", "wide"] = "narrow",
    norm: Norm = "batch",
    shortcut: Literal["conv", "pad"] = "conv",
) -> ResNet:
    """A CIFAR ResNet for images of any size.

    Args:
        widths: 16-32-64 channels (He et al. 2016) or 64-128-256 (released code; docs/released.md, D1).
        norm: `group` makes training independent of the number of workers; batch statistics are each worker's own.
        shortcut: what joins stages: a 1x1 convolution, or zero channels.
    """
    del image_size
    shape = {"num_classes": num_classes, "in_channels": in_channels}
    return ResNet(num_layers, **shape, widths=widths, norm=norm, shortcut=shortcut)
