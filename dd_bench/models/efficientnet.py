"""EfficientNet-B0, in its CIFAR form up to 64 pixels and as published above.

Paper: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (arXiv 1905.11946,
table 1).

The small form is that of kuangliu/pytorch-cifar, which INFER's repository uses as a teacher: stride 1 in the stem and
no 1280-wide layer before the head. We differ from it in two points.

* It counts 3,599,686 parameters with 10 classes; 1,088 of them, a 1x1 convolution and a BatchNorm in the first block,
  are never called, because an expansion ratio of 1 skips the expansion. We do not create them: 3,598,598. (That idle
  BatchNorm is why INFER's code drops one hook by hand.) torchvision's ``efficientnet_b0`` has exactly our blocks: its
  5,288,548 less 412,160 in the last convolution and 1,281,000 in the head, plus our head of 3,210.
* It drops out 20 % of the features before the head (its stochastic depth has rate 0: the block counter is never
  advanced). We have no dropout, so a forward pass is a function of weights and batch alone: recorded labels replay
  exactly, and evaluation draws nothing from the global generator.

Weights start as PyTorch's defaults, as there.

Images with a side over 64 pixels get torchvision's network (5,288,548 parameters with 1,000 classes, the count that it
states), without its dropout and its stochastic depth, which would draw random numbers.
"""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from dd_bench.data.specs import DatasetSpec
from dd_bench.models.classifier import Features
from dd_bench.models.layers import GlobalAverage, conv_bn, fits_small_stem, scaled_channels, set_channels

STEM_CHANNELS = 32
SQUEEZE_RATIO = 4


class Stage(NamedTuple):
    """One row of the paper's table 1: ``blocks`` blocks, the first of them with ``stride``."""

    expansion: int
    channels: int
    blocks: int
    kernel: int
    stride: int


STAGES = (
    Stage(expansion=1, channels=16, blocks=1, kernel=3, stride=1),
    Stage(expansion=6, channels=24, blocks=2, kernel=3, stride=2),
    Stage(expansion=6, channels=40, blocks=2, kernel=5, stride=2),
    Stage(expansion=6, channels=80, blocks=3, kernel=3, stride=2),
    Stage(expansion=6, channels=112, blocks=3, kernel=5, stride=1),
    Stage(expansion=6, channels=192, blocks=4, kernel=5, stride=2),
    Stage(expansion=6, channels=320, blocks=1, kernel=3, stride=1),
)


class SqueezeExcitation(nn.Module):
    """Scales every channel by a gate in (0, 1) computed from the means of all channels; keeps the shape (N, C, H, W).

    Paper: Hu, Shen and Sun, "Squeeze-and-Excitation Networks" (arXiv 1709.01507, equations 2 to 4), with SiLU for ReLU.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.excite = nn.Conv2d(squeezed, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x`` with its channels rescaled."""
        means = x.mean(dim=(2, 3), keepdim=True)  # (N, C, 1, 1)
        gate: Tensor = self.excite(F.silu(self.squeeze(means))).sigmoid()
        return x * gate


class MBConv(nn.Module):
    """An inverted residual with squeeze-and-excitation: (N, C, H, W) to (N, C', H / stride, W / stride).

    The gate's inner width comes from the block's input, not from the expanded width. The input is added where the shape
    stays the same, and only there.
    """

    def __init__(self, in_channels: int, out_channels: int, *, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.expand = None if expansion == 1 else conv_bn(in_channels, hidden, kernel=1)
        self.depthwise = conv_bn(hidden, hidden, kernel=kernel, stride=stride, groups=hidden)
        self.gate = SqueezeExcitation(hidden, max(1, in_channels // SQUEEZE_RATIO))
        self.project = conv_bn(hidden, out_channels, kernel=1)
        self.same_shape = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output."""
        expanded = x if self.expand is None else F.silu(self.expand(x))
        projected: Tensor = self.project(self.gate(F.silu(self.depthwise(expanded))))
        return projected + x if self.same_shape else projected


def efficientnetb0_features(spec: DatasetSpec, *, factor: float) -> Features:
    """Returns EfficientNet-B0 without its head, for images (N, C, H, W) of any size.

    Args:
        spec: gives C, H and W; the longer side chooses the form.
        factor: multiplies every width, rounded to multiples of 8.
    """
    if not fits_small_stem(spec):
        return _published_features(spec.image_shape[0], factor)
    channels = scaled_channels(STEM_CHANNELS, factor)
    layers: list[nn.Module] = [conv_bn(spec.image_shape[0], channels, kernel=3), nn.SiLU()]
    for stage in STAGES:
        out_channels = scaled_channels(stage.channels, factor)
        for block in range(stage.blocks):
            stride = stage.stride if block == 0 else 1
            layers.append(MBConv(channels, out_channels, expansion=stage.expansion, kernel=stage.kernel, stride=stride))
            channels = out_channels
    return nn.Sequential(*layers, GlobalAverage()), channels


def _published_features(channels: int, factor: float) -> Features:
    # here, because it takes a second, and small images need it not
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    before, rows = STEM_CHANNELS, []
    for stage in STAGES:
        rows.append(
            MBConvConfig(stage.expansion, stage.kernel, stage.stride, before, stage.channels, stage.blocks, factor, 1.0)
        )
        before = stage.channels
    network = EfficientNet(rows, dropout=0.0, stochastic_depth_prob=0.0, num_classes=1)
    set_channels(network.features[0], channels)
    return nn.Sequential(*network.features, GlobalAverage()), network.classifier[1].in_features
