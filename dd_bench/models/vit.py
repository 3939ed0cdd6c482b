"""A small Vision Transformer, torchvision's, of the size of ViT-Ti.

Papers: Dosovitskiy et al., "An Image is Worth 16x16 Words" (arXiv 2010.11929); Touvron et al. (DeiT, arXiv 2012.12877),
whose tiny model has 12 layers of width 192 with 3 heads and MLPs four times as wide. Images are cut into 14 x 14
patches of 16 pixels at 224, and into 8 x 8 patches below 112; rows and columns that fill no patch are cut off. There
is no dropout, so the forward pass draws nothing.

Parameters at 224 pixels with 1,000 classes, as DeiT states for its tiny model (5.7 million): 5,717,416.
"""

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError
from dd_bench.models.classifier import Features

if TYPE_CHECKING:
    from torchvision.models import VisionTransformer

LAYERS, HEADS, HEAD_WIDTH = 12, 3, 64


class Transformer(nn.Module):
    """torchvision's, with attention written out: its fused kernels have no second derivative."""

    def __init__(self, network: "VisionTransformer") -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Returns the class token (N, D) of images (N, C, H, W)."""
        with sdpa_kernel(SDPBackend.MATH):
            return self.network(images)  # type: ignore[no-any-return]


class Centre(nn.Module):
    """Cuts images (N, C, H, W) to the largest centred square whose side is a multiple of the patch."""

    def __init__(self, height: int, width: int, side: int) -> None:
        super().__init__()
        self._top, self._left, self._side = (height - side) // 2, (width - side) // 2, side

    def forward(self, images: Tensor) -> Tensor:
        """Returns the squares (N, C, side, side)."""
        return images[..., self._top : self._top + self._side, self._left : self._left + self._side]


def vit_features(spec: DatasetSpec, *, factor: float) -> Features:
    """Returns the transformer without its head, for images (N, C, H, W): the class token behind the last layer.

    Args:
        spec: gives C, H and W; at least 8 pixels a side.
        factor: multiplies the width of a head, 64; at least 4 remain.

    Raises:
        ConfigError: if a side is shorter.
    """
    from torchvision.models import VisionTransformer  # here, because it takes a second, and few need it

    channels, height, width = spec.image_shape
    if min(height, width) < 8:
        raise ConfigError(
            f"vit cuts images into 8 x 8 patches or more; {spec.name} has {height}x{width}: choose another family"
        )
    patch = 16 if min(height, width) >= 112 else min(height, width) // 8
    side = min(height, width) // patch * patch
    wide = HEADS * max(4, int(HEAD_WIDTH * factor + 0.5))
    network = VisionTransformer(side, patch, LAYERS, HEADS, wide, 4 * wide, num_classes=1)
    if channels != 3:
        network.conv_proj = nn.Conv2d(channels, wide, patch, patch)
        nn.init.trunc_normal_(network.conv_proj.weight, std=(1 / (channels * patch**2)) ** 0.5)
        nn.init.zeros_(network.conv_proj.bias)
    network.heads = nn.Identity()
    return nn.Sequential(Centre(height, width, side), Transformer(network)), wide
