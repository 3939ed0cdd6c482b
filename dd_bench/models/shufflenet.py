"""ShuffleNet v1 with two groups, in its CIFAR form, with the stem that fits the image.

Paper: Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices" (arXiv
1707.01083, figure 2 and table 1, g = 2).

The form is that of kuangliu/pytorch-cifar (``ShuffleNetG2``), which INFER's repository uses as a teacher: 887,582
parameters with 10 classes. It differs from the paper by

* up to 64 pixels, a 1x1 stem with stride 1 and no max-pooling, so a 32x32 image ends as a 4x4 map; above, the stem is
  the paper's 3x3 with stride 2 and 3x3 max-pooling;
* a ReLU after the depthwise convolution;
* in units with stride 2, a bottleneck of a quarter of the *new* channels, those not taken over from the shortcut.

As in the paper, the first convolution of the first unit is not grouped; its shuffle then changes nothing. Weights start
as PyTorch's defaults, as there.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dd_bench.data.specs import DatasetSpec
from dd_bench.models.classifier import Features
from dd_bench.models.layers import GlobalAverage, channel_shuffle, conv_bn, fits_small_stem, scaled_channels

GROUPS = 2
STEM_CHANNELS = 24
STAGES = ((200, 4), (400, 8), (800, 4))
"""(channels, blocks) of each stage; its first block has stride 2."""

CHANNEL_STEP = 8
"""Widths, and so the channels a block adds, are multiples of 8: a quarter of them still splits into two groups."""


class ShuffleUnit(nn.Module):
    """A bottleneck of grouped 1x1 convolutions around a depthwise 3x3: (N, C, H, W) to (N, C', H / stride, W / stride).

    With stride 1 the input is added (C' = C). With stride 2 the average-pooled input follows the new channels.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, first_groups: int) -> None:
        super().__init__()
        new = out_channels - in_channels if stride == 2 else out_channels
        hidden = new // 4
        self.first_groups = first_groups
        self.reduce = conv_bn(in_channels, hidden, kernel=1, groups=first_groups)
        self.depthwise = conv_bn(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.expand = conv_bn(hidden, new, kernel=1, groups=GROUPS)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns the unit's output."""
        shuffled = channel_shuffle(F.relu(self.reduce(x)), self.first_groups)
        new = self.expand(F.relu(self.depthwise(shuffled)))
        if self.pool is None:
            return F.relu(new + x)
        return F.relu(torch.cat([new, self.pool(x)], dim=1))


def shufflenetv1_features(spec: DatasetSpec, *, factor: float) -> Features:
    """Returns ShuffleNet v1 (two groups) without its head, for images (N, C, H, W) of any size.

    Args:
        spec: gives C, H and W; the longer side chooses the stem.
        factor: multiplies every width, rounded to multiples of 8; each stage stays wider than the one before.
    """
    channels = scaled_channels(STEM_CHANNELS, factor, multiple=CHANNEL_STEP)
    layers: list[nn.Module] = [conv_bn(spec.image_shape[0], channels, kernel=1), nn.ReLU()]
    if not fits_small_stem(spec):
        stem = conv_bn(spec.image_shape[0], channels, kernel=3, stride=2)
        layers = [stem, nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
    for stage, (stage_channels, blocks) in enumerate(STAGES):
        out_channels = scaled_channels(stage_channels, factor, multiple=CHANNEL_STEP)
        out_channels = max(out_channels, channels + CHANNEL_STEP)  # stride 2 must have channels to add
        for block in range(blocks):
            stride, first_groups = (2 if block == 0 else 1), (1 if stage == block == 0 else GROUPS)
            layers.append(ShuffleUnit(channels, out_channels, stride=stride, first_groups=first_groups))
            channels = out_channels
    return nn.Sequential(*layers, GlobalAverage()), channels
