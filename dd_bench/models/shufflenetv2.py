"""ShuffleNet v2, with the stem that fits the image.

Paper: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design" (arXiv 1807.11164,
figure 3 and table 5).

* Images up to 64 pixels a side: a 3x3 stem with stride 1 and no max-pooling, so a 32x32 image ends as a 4x4 map. This
  is the form of kuangliu/pytorch-cifar (``ShuffleNetV2``), whose width of 0.5 is a voter of CV-DD's: 352,042 parameters
  with 10 classes, 1,263,854 at width 1.
* Larger images: the paper's stem with stride 2 and 3x3 max-pooling: 2,278,604 parameters at width 1 with 1,000 classes,
  the count torchvision states.

The blocks are the same in all three, and weights start as PyTorch's defaults, as there. Only pytorch-cifar's width of 2
differs: its first stage has 224 channels where the paper (and torchvision, and we) have 244.
"""

import torch
from torch import Tensor, nn

from dd_bench.data.specs import DatasetSpec
from dd_bench.models.classifier import Features
from dd_bench.models.layers import GlobalAverage, channel_shuffle, conv_bn, fits_small_stem, scaled_channels

BLOCKS = (4, 8, 4)
"""Blocks in each stage; the first of them has stride 2."""

PUBLISHED_WIDTHS = {
    0.5: (24, (48, 96, 192), 1024),
    1.0: (24, (116, 232, 464), 1024),
    1.5: (24, (176, 352, 704), 1024),
    2.0: (24, (244, 488, 976), 2048),
}
"""Factor -> channels of the stem, of each stage and of the last convolution (the paper's table 5)."""


class SplitUnit(nn.Module):
    """1x1, depthwise 3x3, 1x1 on half of the channels; shuffled with the others. (N, C, H, W) to (N, C', H', W').

    With stride 1 the first half of the input passes by (C' = C). With stride 2 nothing is split: the convolutions see
    all channels, and a depthwise 3x3 with a 1x1 stands in for the half that passes.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.shortcut: nn.Module | None = None
        if stride == 2:
            depthwise = conv_bn(in_channels, in_channels, kernel=3, stride=2, groups=in_channels)
            self.shortcut = nn.Sequential(depthwise, conv_bn(in_channels, half, kernel=1), nn.ReLU())
        self.branch = nn.Sequential(
            conv_bn(in_channels if stride == 2 else half, half, kernel=1),
            nn.ReLU(),
            conv_bn(half, half, kernel=3, stride=stride, groups=half),
            conv_bn(half, half, kernel=1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the unit's output."""
        passing, changing = x.chunk(2, dim=1) if self.shortcut is None else (self.shortcut(x), x)
        return channel_shuffle(torch.cat([passing, self.branch(changing)], dim=1), 2)


def shufflenetv2_features(spec: DatasetSpec, *, factor: float) -> Features:
    """Returns ShuffleNet v2 without its head, for images (N, C, H, W) of any size.

    Args:
        spec: gives C, H and W; the longer side chooses the stem.
        factor: chooses the widths, see ``choose_widths``.
    """
    channels, stage_channels, last = choose_widths(factor)
    layers = _stem(spec, channels)
    for out_channels, blocks in zip(stage_channels, BLOCKS, strict=True):
        for block in range(blocks):
            layers.append(SplitUnit(channels, out_channels, stride=2 if block == 0 else 1))
            channels = out_channels
    return nn.Sequential(*layers, conv_bn(channels, last, kernel=1), nn.ReLU(), GlobalAverage()), last


def choose_widths(factor: float) -> tuple[int, tuple[int, ...], int]:
    """Returns the channels of the stem, of each stage and of the last convolution: the published ones, or even ones.

    Factors without published widths multiply those of width 1 in the stages (published x0.5 is narrower than half of
    them). Stem and last convolution keep their width between 0.5 and 2, as the published ones do below 2; under 0.5
    they shrink with the factor, and above 2 the last one grows with it.

    >>> choose_widths(0.5), choose_widths(0.25)
    ((24, (48, 96, 192), 1024), (12, (30, 58, 116), 512))
    """
    if factor in PUBLISHED_WIDTHS:
        return PUBLISHED_WIDTHS[factor]
    stem, stages, last = PUBLISHED_WIDTHS[1.0]
    shrink = min(1.0, 2 * factor)
    return (
        scaled_channels(stem, shrink, multiple=2),
        tuple(scaled_channels(width, factor, multiple=2) for width in stages),
        scaled_channels(last, factor if factor > 2 else shrink, multiple=2),
    )


def _stem(spec: DatasetSpec, width: int) -> list[nn.Module]:
    """Returns the layers before the first unit: full resolution for small images, a quarter of it for large ones."""
    channels = spec.image_shape[0]
    if fits_small_stem(spec):
        return [conv_bn(channels, width, kernel=3), nn.ReLU()]
    return [conv_bn(channels, width, kernel=3, stride=2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
