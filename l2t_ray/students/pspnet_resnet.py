"""PSPNet at full size (Zhao et al., CVPR 2017): on a ResNet-50 or -101 of torchvision, dilated, at an eighth of the
image's size.

The first weights may come from a file (`student.initial_weights`); nothing is downloaded.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from l2t_ray.extras import needed_by
from l2t_ray.interfaces import UserError
from l2t_ray.students.pspnet import BINS, enlarged, grid_means
from l2t_ray.students.resnet import ConvNorm

LAYERS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Blocks of each stage, by depth."""
EARLIER, LAST, REDUCED, NARROW = 1024, 2048, 512, 256
"""Channels of the third and the fourth stage, of the pyramid's branches, and of the auxiliary head."""
DROPPED = 0.1


class ResNetPSPNet(nn.Module):
    """Logits `[n, c, h, w]` of images `[n, 3, h, w]`; in training mode a pair, those and the auxiliary head's.

    Attributes:
        backbone: the ResNet, with torchvision's names of its weights.
    """

    def __init__(self, depth: int, *, num_classes: int, auxiliary: bool = True):
        super().__init__()
        with needed_by(f"student pspnet_resnet{depth}"):
            from torchvision.models.resnet import Bottleneck, ResNet  # seconds, and other students do without it

        # The last two stages keep the second one's size, and dilate their windows instead.
        self.backbone = ResNet(Bottleneck, list(LAYERS[depth]), replace_stride_with_dilation=[False, True, True])
        del self.backbone.fc, self.backbone.avgpool
        for module in self.backbone.modules():
            if isinstance(module, Bottleneck):
                module.is_recomputed = True  # pyright: ignore[reportArgumentType]
        # Without a norm: of the mean over a whole image there is one value a channel.
        self.pyramid = nn.ModuleList(nn.Conv2d(LAST, REDUCED, 1) for _ in BINS)
        self.bottleneck = ConvNorm(LAST + REDUCED * len(BINS), REDUCED, 3, 1, "batch", relu=True)
        self.dropout = nn.Dropout2d(DROPPED)
        self.classify = nn.Conv2d(REDUCED, num_classes, 1)
        self.auxiliary = (
            nn.Sequential(
                ConvNorm(EARLIER, NARROW, 3, 1, "batch", relu=True),
                nn.Dropout2d(DROPPED),
                nn.Conv2d(NARROW, num_classes, 1),
            )
            if auxiliary
            else None
        )

    def forward(
        self, images: Float[Tensor, "n 3 h w"]
    ) -> Float[Tensor, "n c h w"] | tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
        size, net = images.shape[2:], self.backbone
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        earlier = net.layer3(net.layer2(net.layer1(x)))
        features = net.layer4(earlier)
        context = [
            enlarged(F.relu(reduce(grid_means(features, side))), features.shape[2:])
            for side, reduce in zip(BINS, self.pyramid, strict=True)
        ]
        logits = self.classify(self.dropout(self.bottleneck(torch.cat([features, *context], dim=1))))
        if self.auxiliary is None or not self.training:
            return enlarged(logits, size)
        return enlarged(logits, size), enlarged(self.auxiliary(earlier), size)


def pspnet_resnet(
    depth: int, *, num_classes: int, in_channels: int, image_size: int, auxiliary: bool = True
) -> ResNetPSPNet:
    """See `ResNetPSPNet`. Images may be of any size, and have three channels.

    Raises:
        UserError: if they have another number, or torchvision is not installed.
    """
    del image_size
    if in_channels != 3:
        raise UserError(
            f"student pspnet_resnet{depth} takes images of 3 channels, and these have {in_channels}; set "
            "student.name=pspnet, which takes any."
        )
    return ResNetPSPNet(depth, num_classes=num_classes, auxiliary=auxiliary)
