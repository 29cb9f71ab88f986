"""LeNet with 20 and 50 convolution channels and 500 hidden units, the small student of the MNIST experiments."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from l2t_ray.interfaces import UserError


class LeNet(nn.Module):
    """Two 5x5 convolutions, each pooled and then rectified, and two linear layers: 20-50-800-500-c on 28x28 images.

    Images below 16x16, the 8x8 digits above all, leave nothing after two unpadded 5x5 convolutions; there both are
    padded by 2.
    """

    def __init__(self, *, num_classes: int, in_channels: int = 1, image_size: int = 28):
        """
        Args:
            num_classes: length of the logits.
            in_channels: 1 or 3, or any other number.
            image_size: height and width of the images.

        Raises:
            UserError: if the images are smaller than 4x4.
        """
        super().__init__()
        if image_size < 4:
            raise UserError(f"student: LeNet needs images of 4x4 or more, got {image_size}x{image_size}.")
        padding = 2 if image_size < 16 else 0
        self.conv1 = nn.Conv2d(in_channels, 20, 5, padding=padding)
        self.conv2 = nn.Conv2d(20, 50, 5, padding=padding)
        side = image_size
        for _ in range(2):
            side = (side + 2 * padding - 4) // 2
        self.hidden = nn.Linear(50 * side**2, 500)
        self.linear = nn.Linear(500, num_classes)

    def forward(
        self, x: Float[Tensor, "n c h w"], with_embedding: bool = False
    ) -> Float[Tensor, "n k"] | tuple[Float[Tensor, "n k"], Float[Tensor, "n d"]]:
        """Logits, and with them the 500 rectified hidden units."""
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        embedding = F.relu(self.hidden(x.flatten(1)))
        logits = self.linear(embedding)
        return (logits, embedding) if with_embedding else logits


def lenet(*, num_classes: int, in_channels: int, image_size: int) -> LeNet:
    """LeNet, for small grey images."""
    return LeNet(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
