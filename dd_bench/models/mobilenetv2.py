"""MobileNetV2, in its CIFAR form up to 64 pixels and as published above.

Paper: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (arXiv 1801.04381, table 2).

The small form is that of kuangliu/pytorch-cifar, which INFER's repository uses as a teacher: 2,296,922 parameters with
10 classes. It differs from the paper, and from torchvision's ``mobilenet_v2`` (2,236,682 with 10 classes), by

* stride 1 in the stem and in the second stage, so a 32x32 image ends as a 4x4 map;
* a 1x1 expansion also in the first block, whose ratio is 1 (1,088 parameters);
* a projected shortcut (1x1 convolution with BatchNorm) where a block with stride 1 changes the number of channels and
  the paper has no shortcut (59,152 parameters in four blocks);
* ReLU for ReLU6, and no dropout before the head.

Weights start as PyTorch's defaults, as there. The width factor scales every layer, the last one included.

Images with a side over 64 pixels get torchvision's network (3,504,872 parameters with 1,000 classes, the count that it
states), whose last layer never has fewer than 1280 channels, less the dropout before its head.
"""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from dd_bench.data.specs import DatasetSpec
from dd_bench.models.classifier import Features
from dd_bench.models.layers import GlobalAverage, conv_bn, fits_small_stem, scaled_channels, set_channels

STEM_CHANNELS = 32
LAST_CHANNELS = 1280


class Stage(NamedTuple):
    """One row of the paper's table 2: ``blocks`` blocks, the first of them with ``stride``."""

    expansion: int
    channels: int
    blocks: int
    stride: int


STAGES = (
    Stage(expansion=1, channels=16, blocks=1, stride=1),
    Stage(expansion=6, channels=24, blocks=2, stride=1),  # the paper: stride 2
    Stage(expansion=6, channels=32, blocks=3, stride=2),
    Stage(expansion=6, channels=64, blocks=4, stride=2),
    Stage(expansion=6, channels=96, blocks=3, stride=1),
    Stage(expansion=6, channels=160, blocks=3, stride=2),
    Stage(expansion=6, channels=320, blocks=1, stride=1),
)


class InvertedResidual(nn.Module):
    """Expands, filters each channel alone, and projects: (N, C, H, W) to (N, C', H / stride, W / stride).

    No activation follows the projection (the "linear bottleneck"). With stride 1 a shortcut is added: the input itself,
    or its projection where the number of channels changes.
    """

    def __init__(self, in_channels: int, out_channels: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.expand = conv_bn(in_channels, hidden, kernel=1)
        self.depthwise = conv_bn(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.project = conv_bn(hidden, out_channels, kernel=1)
        self.shortcut: nn.Module | None = None
        if stride == 1:
            self.shortcut = (
                nn.Identity() if in_channels == out_channels else conv_bn(in_channels, out_channels, kernel=1)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output."""
        filtered = F.relu(self.depthwise(F.relu(self.expand(x))))
        projected: Tensor = self.project(filtered)
        return projected if self.shortcut is None else projected + self.shortcut(x)


def mobilenetv2_features(spec: DatasetSpec, *, factor: float) -> Features:
    """Returns MobileNetV2 without its head, for images (N, C, H, W) of any size.

    Args:
        spec: gives C, H and W; the longer side chooses the form.
        factor: multiplies every width, rounded to multiples of 8.
    """
    if not fits_small_stem(spec):
        return _published_features(spec.image_shape[0], factor)
    channels = scaled_channels(STEM_CHANNELS, factor)
    layers: list[nn.Module] = [conv_bn(spec.image_shape[0], channels, kernel=3), nn.ReLU()]
    for stage in STAGES:
        out_channels = scaled_channels(stage.channels, factor)
        for block in range(stage.blocks):
            stride = stage.stride if block == 0 else 1
            layers.append(InvertedResidual(channels, out_channels, expansion=stage.expansion, stride=stride))
            channels = out_channels
    last = scaled_channels(LAST_CHANNELS, factor)
    return nn.Sequential(*layers, conv_bn(channels, last, kernel=1), nn.ReLU(), GlobalAverage()), last


def _published_features(channels: int, factor: float) -> Features:
    from torchvision.models import mobilenet_v2  # here, because it takes a second, and small images need it not

    network = mobilenet_v2(width_mult=factor, num_classes=1)
    set_channels(network.features[0], channels)
    return nn.Sequential(*network.features, GlobalAverage()), network.last_channel
