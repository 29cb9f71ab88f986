"""Wide ResNets WRN-depth-k (Zagoruyko & Komodakis, BMVC 2016), without dropout."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from l2t_ray.interfaces import UserError
from l2t_ray.students.resnet import Norm, norm_layer, pool_to_grid

MOST = 1_024
"""Of anything: what is larger fills the memory before anybody is told."""


class _Block(nn.Module):
    """Normalise, rectify, convolve, twice. Where the width changes, the shortcut starts after the first rectifier."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm: Norm):
        super().__init__()
        self.norm1 = norm_layer(norm, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm2 = norm_layer(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        is_projected = stride > 1 or channels_in != channels
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False) if is_projected else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        y = F.relu(self.norm1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return self.conv2(F.relu(self.norm2(self.conv1(y)), inplace=True)) + shortcut


class WideResNet(nn.Module):
    """Three stages of (depth - 4) / 6 blocks with 16k, 32k and 64k channels, global average pooling, linear layer."""

    def __init__(self, depth: int, widen: int, *, num_classes: int, in_channels: int = 3, norm: Norm = "batch"):
        """
        Args:
            depth: layers with weights, 6n + 4: 10, 16, 28, 40.
            widen: k, the width as a multiple of a ResNet's.
            num_classes: length of the logits.
            in_channels: 1 or 3, or any other number.
            norm: `batch`, or `group` with 8 groups.

        Raises:
            UserError: if `depth` is not 6n + 4, `widen` is below 1, or either is beyond `MOST`.
        """
        super().__init__()
        if not 10 <= depth <= MOST or (depth - 4) % 6:
            raise UserError(
                f"student.depth must be 6n + 4 (10, 16, 28, 40, ...) for a wide ResNet, at most {MOST}, got {depth}."
            )
        if not 1 <= widen <= MOST:
            raise UserError(f"student.width_factor must be from 1 to {MOST}, got {widen}.")
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        blocks, channels_in = [], 16
        for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for number in range((depth - 4) // 6):
                blocks.append(_Block(channels_in, width, 2 if stage > 0 and number == 0 else 1, norm))
                channels_in = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm_layer(norm, channels_in)
        self.linear = nn.Linear(channels_in, num_classes)

    def forward(
        self, x: Float[Tensor, "n c h w"], with_embedding: bool = False
    ) -> Float[Tensor, "n k"] | tuple[Float[Tensor, "n k"], Float[Tensor, "n d"]]:
        """Logits, and with them the pooled features that the last layer reads."""
        x = x.contiguous(memory_format=torch.channels_last)  # as in `ResNet`
        maps = F.relu(self.norm(self.blocks(self.conv(x))), inplace=True)
        embedding = pool_to_grid(maps, 1).flatten(1)
        logits = self.linear(embedding)
        return (logits, embedding) if with_embedding else logits


def wide_resnet(
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    depth: int = 28,
    width_factor: int = 10,
    norm: Norm = "batch",
) -> WideResNet:
    """A wide ResNet for images of any size.

    Args:
        depth: layers (16, 22, 28, 40).
        width_factor: k, its width as a multiple of a ResNet's.
        norm: `group` makes training independent of the number of workers; batch statistics are each worker's own.
    """
    del image_size
    return WideResNet(depth, width_factor, num_classes=num_classes, in_channels=in_channels, norm=norm)
