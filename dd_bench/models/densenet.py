"""DenseNet-121, with the stem that fits the image.

Paper: Huang, Liu, van der Maaten and Weinberger, "Densely Connected Convolutional Networks" (arXiv 1608.06993, table 1,
"DenseNet-121", k = 32: with bottlenecks and compression by half).

* Images up to 64 pixels a side: a bare 3x3 convolution with stride 1 as the stem, so a 32x32 image ends as a 4x4 map.
  This is ``DenseNet121`` of kuangliu/pytorch-cifar, a voter of CV-DD's: 6,956,298 parameters with 10 classes. (Its
  ``densenet_cifar`` has k = 12, which is ``densenet121-x0.375``: 1,000,618.)
* Larger images: the paper's 7x7 stem with stride 2, BatchNorm and 3x3 max-pooling: 7,978,856 parameters with 1,000
  classes, the count torchvision states.
* New channels follow the old ones, as in torchvision; in pytorch-cifar they come first, the same network with its
  channels in another order.
* Weights start as PyTorch's defaults, as in pytorch-cifar; torchvision's start from Kaiming's normal, fan in.
* A side of one pixel is not halved: published code fails at sides under 8 pixels (with the large stem, under 29).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dd_bench.data.specs import DatasetSpec
from dd_bench.models.classifier import Features
from dd_bench.models.layers import GlobalAverage, conv_bn, fits_small_stem

GROWTH = 32
BOTTLENECK = 4
BLOCKS = (6, 12, 24, 16)
"""Layers in each dense block; a transition stands between two blocks."""


class DenseLayer(nn.Module):
    """Puts ``growth`` new channels behind those it got, from all of which they come: (N, C, H, W) to (N, C', H, W)."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        hidden = BOTTLENECK * growth
        self.grow = nn.Sequential(
            *_bn_relu_conv(in_channels, hidden, kernel=1),
            *_bn_relu_conv(hidden, growth, kernel=3),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the old channels and the new ones."""
        return torch.cat([x, self.grow(x)], dim=1)


class Transition(nn.Module):
    """Mixes the channels into ``out_channels`` and halves the map: (N, C, H, W) to (N, C', H // 2, W // 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(*_bn_relu_conv(in_channels, out_channels, kernel=1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the mixed channels, averaged over 2x2 pixels; a side of one pixel stays."""
        height, width = x.shape[2:]
        return F.avg_pool2d(self.mix(x), (min(2, height), min(2, width)))


def densenet121_features(spec: DatasetSpec, *, factor: float) -> Features:
    """Returns DenseNet-121 without its head, for images (N, C, H, W) of any size.

    Args:
        spec: gives C, H and W; the longer side chooses the stem.
        factor: multiplies the growth rate of 32 (at least 1 remains), and with it every width.
    """
    growth = max(1, int(GROWTH * factor + 0.5))
    channels = 2 * growth
    layers = _stem(spec, channels)
    for block, depth in enumerate(BLOCKS):
        if block > 0:
            layers.append(Transition(channels, channels // 2))
            channels //= 2
        for _ in range(depth):
            layers.append(DenseLayer(channels, growth))
            channels += growth
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), GlobalAverage()), channels


def _bn_relu_conv(in_channels: int, out_channels: int, *, kernel: int) -> list[nn.Module]:
    """Returns BatchNorm, ReLU and a convolution without bias, in this order; height and width stay."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return [nn.BatchNorm2d(in_channels), nn.ReLU(), conv]


def _stem(spec: DatasetSpec, width: int) -> list[nn.Module]:
    """Returns the layers before the first block: full resolution for small images, a quarter of it for large ones."""
    channels = spec.image_shape[0]
    if fits_small_stem(spec):
        return [nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)]  # the first layer has the BatchNorm
    return [conv_bn(channels, width, kernel=7, stride=2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
